//! The generators of requests.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::wire::{Known, Shape, Wire, wire};
use crate::common::{AUTH, LUN, TARGET};

/// One request.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A single call.
    Call(Call, Sent),
    /// A compound.
    Compound(Vec<Call>, Sent),
    /// Raw bytes on a connection.
    Bytes(Vec<u8>),
}

/// A call. Empty fields are not sent.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The API.
    pub(crate) api: String,
    /// Its version.
    pub(crate) version: String,
    /// The method.
    pub(crate) method: String,
    /// Parameters; some names occur twice.
    pub(crate) params: Vec<(String, Wire)>,
}

/// How a call is sent over HTTP.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    /// The path below `/webapi/`.
    pub(crate) path: String,
    /// The HTTP method.
    pub(crate) http: &'static str,
    /// Bit mask of the parameters that go into the query.
    pub(crate) in_query: u32,
    /// Whether `api`, `version` and `method` are sent as JSON strings.
    pub(crate) quoted: bool,
    /// How the session id is sent.
    pub(crate) session: Session,
    /// The body's `Content-Type`.
    pub(crate) kind: Option<&'static str>,
    /// Additional headers.
    pub(crate) headers: Vec<(&'static str, Vec<u8>)>,
    /// Appended to the body.
    pub(crate) tail: Vec<u8>,
}

/// How the session id is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Session {
    /// In the cookie `id`.
    Cookie,
    /// As the parameter `_sid`.
    Param,
    /// Not at all.
    Nowhere,
    /// A session id that does not exist.
    Wrong,
}

const APIS: [&str; 18] = [
    LUN,
    TARGET,
    AUTH,
    "SYNO.API.Auth.UIConfig",
    "SYNO.API.Encryption",
    "SYNO.API.Info",
    "SYNO.Core.FileServ.NFS",
    "SYNO.Core.FileServ.NFS.SharePrivilege",
    "SYNO.Core.ISCSI.Host",
    "SYNO.Core.ISCSI.Node",
    "SYNO.Core.Network.Interface",
    "SYNO.Core.Share",
    "SYNO.Core.Storage.Volume",
    "SYNO.Core.System",
    "SYNO.Core.System.Utilization",
    "SYNO.DSM.Info",
    "SYNO.Storage.CGI.Storage",
    "SYNO.Entry.Request",
];

const METHODS: [&str; 30] = [
    "list",
    "get",
    "create",
    "set",
    "delete",
    "map_target",
    "unmap_target",
    "clone",
    "stop_clone",
    "take_snapshot",
    "list_snapshot",
    "get_snapshot",
    "delete_snapshot",
    "clone_snapshot",
    "restore_snapshot",
    "map_lun",
    "unmap_lun",
    "enable",
    "disable",
    "login",
    "logout",
    "getinfo",
    "query",
    "load",
    "info",
    "load_info",
    "request",
    "save",
    "",
    "LIST",
];

const PARAMS: [&str; 44] = [
    "uuid",
    "uuids",
    "name",
    "size",
    "type",
    "location",
    "description",
    "dev_attribs",
    "types",
    "additional",
    "new_name",
    "new_size",
    "target_id",
    "target_ids",
    "lun_uuids",
    "iqn",
    "auth_type",
    "user",
    "password",
    "mutual_user",
    "mutual_password",
    "max_sessions",
    "acls",
    "src_lun_uuid",
    "dst_lun_name",
    "dst_location",
    "is_same_pool",
    "clone_type",
    "snapshot_name",
    "snapshot_uuid",
    "snapshot_uuids",
    "src_snapshot_uuid",
    "cloned_lun_name",
    "is_locked",
    "is_app_consistent",
    "taken_by",
    "volume_path",
    "account",
    "passwd",
    "format",
    "session",
    "query",
    "compound",
    "stop_when_error",
];

/// A case: creates some objects, then sends random requests.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..40).prop_map(|steps| setup().chain(steps).collect())
}

/// Creates two LUNs, a target and a snapshot; all of it succeeds.
fn setup() -> impl Iterator<Item = Step> {
    let calls = [
        create_lun("a", 1 << 30, "BLUN"),
        create_lun("b", 1 << 20, "BLUN"),
        create_target("a"),
        take_snapshot(0, "a"),
    ];
    calls.into_iter().map(|call| Step::Call(call, form(false)))
}

fn create_lun(name: &str, size: u64, kind: &str) -> Call {
    let params = vec![
        ("name", Wire::text(name)),
        ("size", Wire::Json(json!(size))),
        ("type", Wire::text(kind)),
        ("location", Wire::text("/volume1")),
    ];
    call(LUN, "create", params)
}

fn create_target(name: &str) -> Call {
    let iqn = format!("iqn.2000-01.com.synology:{}", name.replace('é', "e"));
    let params = vec![("name", Wire::text(name)), ("iqn", Wire::text(&iqn))];
    call(TARGET, "create", params)
}

fn take_snapshot(lun: usize, name: &str) -> Call {
    let params = vec![
        ("src_lun_uuid", Wire::quoted(Known::Lun(lun))),
        ("snapshot_name", Wire::text(name)),
        ("description", Wire::text("")),
        ("taken_by", Wire::text("fuzz")),
        ("is_locked", Wire::Json(json!(false))),
        ("is_app_consistent", Wire::Json(json!(false))),
    ];
    call(LUN, "take_snapshot", params)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (valid(), usual_http()).prop_map(|(call, sent)| Step::Call(call, sent)),
        3 => (altered(), usual_http()).prop_map(|(call, sent)| Step::Call(call, sent)),
        3 => (random(), usual_http()).prop_map(|(call, sent)| Step::Call(call, sent)),
        2 => (prop_oneof![valid(), random()], unusual_http()).prop_map(|(call, sent)| Step::Call(call, sent)),
        1 => (proptest::collection::vec(prop_oneof![valid(), random()], 0..4), prop_oneof![usual_http(), unusual_http()])
            .prop_map(|(calls, sent)| Step::Compound(calls, sent)),
        1 => malformed().prop_map(Step::Bytes),
    ]
}

fn call(api: &str, method: &str, params: Vec<(&str, Wire)>) -> Call {
    Call {
        api: api.to_owned(),
        version: "1".to_owned(),
        method: method.to_owned(),
        params: params
            .into_iter()
            .map(|(name, wire)| (name.to_owned(), wire))
            .collect(),
    }
}

/// A call that a client would make.
fn valid() -> impl Strategy<Value = Call> {
    let name =
        || prop_oneof![4 => "[a-d]", 1 => Just("é-1".to_owned()), 1 => Just("n".repeat(255))];
    let size = || select(vec![1_u64, 1 << 20, 1 << 30, 3 << 40]);
    let index = || 0..4_usize;
    let lun = |index| Wire::quoted(Known::Lun(index));
    let target = |index| Wire::quoted(Known::Target(index));
    let snapshot = |index| Wire::quoted(Known::Snapshot(index));
    prop_oneof![
        4 => (name(), size(), select(vec!["BLUN", "BLUN_THICK", "THIN"]))
            .prop_map(|(name, size, kind)| create_lun(&name, size, kind)),
        2 => name().prop_map(|name| create_target(&name)),
        2 => (index(), index()).prop_map(move |(one, other)| call(TARGET, "map_lun", vec![
            ("target_id", target(one)), ("lun_uuids", Wire::Known(Known::Lun(other), Shape::Listed)),
        ])),
        1 => (index(), index()).prop_map(move |(one, other)| call(LUN, "unmap_target", vec![
            ("uuid", lun(one)), ("target_ids", Wire::Known(Known::Target(other), Shape::Numbers)),
        ])),
        2 => (index(), size()).prop_map(move |(one, size)| call(LUN, "set", vec![
            ("uuid", lun(one)), ("new_size", Wire::Json(json!(size))),
        ])),
        2 => (index(), name()).prop_map(|(one, name)| take_snapshot(one, &name)),
        1 => (index(), name()).prop_map(move |(one, name)| call(LUN, "clone", vec![
            ("src_lun_uuid", lun(one)), ("dst_lun_name", Wire::text(&name)), ("dst_location", Wire::text("/volume1")),
            ("is_same_pool", Wire::Json(json!(true))), ("clone_type", Wire::text("fuzz")),
        ])),
        2 => (index(), index(), name()).prop_map(move |(one, other, name)| call(LUN, "clone_snapshot", vec![
            ("src_lun_uuid", lun(one)), ("snapshot_uuid", snapshot(other)), ("cloned_lun_name", Wire::text(&name)),
        ])),
        1 => (index(), index()).prop_map(move |(one, other)| call(LUN, "restore_snapshot", vec![
            ("src_lun_uuid", lun(one)), ("snapshot_uuid", snapshot(other)),
        ])),
        1 => index().prop_map(move |one| call(LUN, "delete_snapshot", vec![("snapshot_uuid", snapshot(one))])),
        1 => index().prop_map(move |one| call(LUN, "delete", vec![("uuid", lun(one))])),
        1 => index().prop_map(move |one| call(TARGET, "delete", vec![("target_id", target(one))])),
        2 => select(vec![LUN, TARGET, "SYNO.Core.Storage.Volume", "SYNO.Core.ISCSI.Node"])
            .prop_map(|api| call(api, "list", vec![])),
        1 => Just(Call { version: "6".to_owned(), ..call(AUTH, "login", vec![
            ("account", Wire::Raw(b"admin".to_vec())), ("passwd", Wire::Raw(b"admin".to_vec())),
            ("format", Wire::Raw(b"sid".to_vec())),
        ]) }),
    ]
}

/// A valid call with one parameter changed, removed or sent twice.
fn altered() -> impl Strategy<Value = Call> {
    (
        valid(),
        any::<prop::sample::Index>(),
        proptest::option::of(wire()),
        any::<bool>(),
    )
        .prop_map(|(mut call, at, wire, twice)| {
            if call.params.is_empty() {
                return call;
            }
            let at = at.index(call.params.len());
            match wire {
                Some(wire) if twice => call.params.push((call.params[at].0.clone(), wire)),
                Some(wire) => call.params[at].1 = wire,
                None => drop(call.params.remove(at)),
            }
            call
        })
}

/// Any method with any parameters.
fn random() -> impl Strategy<Value = Call> {
    let mostly = |list: &[&str]| {
        let list: Vec<String> = list.iter().map(|text| (*text).to_owned()).collect();
        prop_oneof![12 => select(list), 1 => any::<String>()]
    };
    let version = prop_oneof![
        8 => select(["1", "2", "3", "6", "7"].map(str::to_owned).to_vec()),
        1 => select(["", "0", "-1", "1.0", "4294967296", "\"1\"", "one"].map(str::to_owned).to_vec()),
    ];
    let params = proptest::collection::vec((mostly(&PARAMS), wire()), 0..7);
    (mostly(&APIS), version, mostly(&METHODS), params).prop_map(|(api, version, method, params)| {
        Call {
            api,
            version,
            method,
            params,
        }
    })
}

/// A form in the body, as clients send it.
fn usual_http() -> impl Strategy<Value = Sent> {
    any::<bool>().prop_map(form)
}

fn form(quoted: bool) -> Sent {
    Sent {
        path: "entry.cgi".to_owned(),
        http: "POST",
        in_query: 0,
        quoted,
        session: Session::Cookie,
        kind: Some("application/x-www-form-urlencoded"),
        headers: vec![],
        tail: vec![],
    }
}

/// Any other path, HTTP method, session, content type, headers or body.
fn unusual_http() -> impl Strategy<Value = Sent> {
    let path = prop_oneof![
        6 => select(["entry.cgi", "auth.cgi", "query.cgi", "encryption.cgi"].map(str::to_owned).to_vec()),
        1 => select([format!("entry.cgi/{LUN}"), "entry.cgi/".into(), "none.cgi".into(), "entry.cgi/a/b".into(), "..%2f".into()].to_vec()),
    ];
    let session = prop_oneof![
        4 => Just(Session::Cookie), 4 => Just(Session::Param), 1 => Just(Session::Nowhere), 1 => Just(Session::Wrong),
    ];
    let kinds = vec![
        None,
        Some("application/x-www-form-urlencoded"),
        Some("application/json"),
        Some("multipart/form-data"),
        Some("multipart/form-data; boundary=x"),
        Some("text/plain; charset=utf-16"),
    ];
    let header = prop_oneof![
        proptest::collection::vec(0x20..=0x7e_u8, 0..40),
        proptest::collection::vec(0x80..=0xff_u8, 0..40),
        Just(b"id=; id=\"; =; ;;; id".to_vec()),
        Just(vec![b'a'; 9_000]),
    ];
    let names = vec![
        "cookie",
        "x-syno-token",
        "x-syno-hash",
        "accept-encoding",
        "origin",
        "range",
        "expect",
        "x-forwarded-for",
    ];
    let headers = proptest::collection::vec((select(names), header), 0..3);
    let tail = prop_oneof![
        5 => Just(vec![]),
        1 => proptest::collection::vec(any::<u8>(), 0..60),
        1 => Just(b"\r\n--x\r\nContent-Disposition: form-data; name=\"api\"\r\n\r\nSYNO".to_vec()),
        1 => Just(vec![b'='; 3 << 20]),
    ];
    let http = select(vec![
        "GET", "GET", "POST", "POST", "POST", "PUT", "HEAD", "DELETE", "OPTIONS",
    ]);
    (
        path,
        http,
        any::<u32>(),
        any::<bool>(),
        session,
        select(kinds),
        headers,
        tail,
    )
        .prop_map(
            |(path, http, in_query, quoted, session, kind, headers, tail)| Sent {
                path,
                http,
                in_query,
                quoted,
                session,
                kind,
                headers,
                tail,
            },
        )
}

/// Malformed HTTP.
fn malformed() -> impl Strategy<Value = Vec<u8>> {
    let lines = select(vec![
        "POST /webapi/entry.cgi HTTP/1.1\r\n",
        "GET /webapi/entry.cgi?api=%zz HTTP/1.1\r\n",
        "GET /webapi/entry.cgi HTTP/9.9\r\n",
        "GET  HTTP/1.1\r\n",
        "POST /webapi/entry.cgi\r\n",
        "\r\n\r\n",
        "",
    ]);
    let headers = select(vec![
        "Host: a\r\nContent-Length: 5\r\n\r\nap",
        "Host: a\r\nContent-Length: -1\r\n\r\n",
        "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "Host: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n",
        "Host: a\r\nCookie\r\n\r\n",
        "Host: a\r\n\u{0}: b\r\n\r\n",
        "Host: a\r\n",
        "",
    ]);
    (
        lines,
        headers,
        proptest::collection::vec(any::<u8>(), 0..40),
    )
        .prop_map(|(line, headers, tail)| [line.as_bytes(), headers.as_bytes(), &tail].concat())
}

impl Call {
    /// As an entry of a compound.
    pub(crate) fn inner(&self, state: &Value) -> Value {
        let mut fields = serde_json::Map::new();
        for (name, wire) in &self.params {
            fields.insert(name.clone(), wire.json(state));
        }
        for (name, text) in [("api", &self.api), ("method", &self.method)] {
            fields.insert(name.to_owned(), json!(text));
        }
        let version = self
            .version
            .parse::<u32>()
            .map_or_else(|_| json!(self.version), |number| json!(number));
        fields.insert("version".to_owned(), version);
        fields.into()
    }
}
