//! The modes of `iscsiadm`. Output and exit codes follow open-iscsi; see `console` for the codes.

use std::io::Write;
use std::path::Path;

use super::argv::{self, Mode, Op, Options};
use super::console::{Console, Exit, Failure};
use super::database::Database;
use super::host::Host;
use super::print;
use super::record::{self, IFACE, NodeKey, Origin, Pattern, Record, VERSION, exactly};
use super::session::{Session, Sessions};

mod discover;

/// The default port of a portal. RFC 7143 section 4.2.7.1.
const DEFAULT_PORT: u16 = 3260;

/// The context of a command, for all modes.
struct Command<'a, 'b> {
    host: &'a Host,
    sessions: Sessions<'a>,
    console: &'a mut Console<'b>,
}

/// Runs one command on the host root at `root` and returns its exit code. `args` are without the program's own name.
pub fn run(root: &Path, args: &[String], out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let mut console = Console::new(out, err);
    let exit = match answer(&Host::at(root), args, &mut console) {
        Ok(exit) => exit,
        Err(failure) => {
            console.warn(&failure);
            failure.exit
        }
    };
    exit as u8
}

fn answer(host: &Host, args: &[String], console: &mut Console<'_>) -> Result<Exit, Failure> {
    let options = argv::parse(args)?;
    if options.help {
        console.print("iscsiadm -m discovery|discoverydb|node|session|host|iface …, as open-iscsi's manual page has it (simulated by node-sim)");
        return Ok(Exit::Success);
    }
    if options.version {
        console.print(format!("iscsiadm version {VERSION}"));
        return Ok(Exit::Success);
    }
    if options.iface.as_ref().is_some_and(|iface| iface != IFACE) {
        return Err(Failure::invalid(format!(
            "Could not read iface info for {}.",
            options.iface.unwrap_or_default()
        )));
    }
    // Take this before the simulator's own lock: a command that waits for it must not block logouts.
    let _database = match database_access(&options) {
        Some(lists) => Some(Database::open(host, lists)?),
        None => None,
    };
    if options.login || matches!(options.mode, Some(Mode::Discovery | Mode::DiscoveryDb)) {
        // A connection to iscsid starts it (socket activation).
        host.start_iscsid()?;
    }
    let lock = host.lock()?;
    let sessions = Sessions::open(host, &lock)?;
    let mut command = Command {
        host,
        sessions,
        console,
    };
    match options.mode {
        Some(Mode::Node) => command.node(&options),
        Some(Mode::Session) => command.session(&options),
        Some(Mode::Discovery) => command.discovery(&options),
        Some(Mode::DiscoveryDb) => command.discoverydb(&options),
        Some(Mode::Host) => command.hosts(),
        Some(Mode::Iface) => command.ifaces(&options),
        None => Err(Failure::invalid("no mode specified")),
    }
}

/// `Some` if a command accesses the database of records; true if it only reads.
fn database_access(options: &Options) -> Option<bool> {
    let acts = options.logout || options.rescan;
    let reads = !options.login
        && options
            .ops
            .iter()
            .all(|op| matches!(op, Op::Show | Op::NonPersistent));
    match options.mode? {
        Mode::Node => (!acts).then_some(reads),
        Mode::Session => {
            (!acts && options.sid.is_some() && !options.ops.is_empty()).then_some(reads)
        }
        Mode::Discovery | Mode::DiscoveryDb => Some(false),
        Mode::Host | Mode::Iface => None,
    }
}

impl Command<'_, '_> {
    fn node(&mut self, options: &Options) -> Result<Exit, Failure> {
        let portal = options.portal.as_ref();
        let pattern = Pattern {
            iqn: options.target.clone(),
            address: portal.map(|portal| portal.host.clone()),
            port: portal.map(|portal| portal.port.unwrap_or(DEFAULT_PORT)),
            sid: None,
        };
        if options.op()? == Some(Op::New) {
            return self.new_record(options);
        }
        if pattern.is_any()
            && options.ops.is_empty()
            && !options.login
            && !options.logout
            && !options.rescan
        {
            return self.list_records(options);
        }
        self.act(&pattern, options)
    }

    fn session(&mut self, options: &Options) -> Result<Exit, Failure> {
        let pattern = Pattern {
            sid: options.sid,
            ..Pattern::default()
        };
        let found = self.sessions.find(&pattern);
        if let Some(sid) = options.sid {
            let Some(session) = found.first() else {
                return Err(Failure::new(
                    Exit::SysfsLookup,
                    format!("Could not get session info for sid {sid}"),
                ));
            };
            if options.logout || options.rescan {
                return self.act(&pattern, options);
            }
            if options.ops.is_empty() && options.print.is_some_and(|level| level > 0) {
                return self.list_sessions(&found, options);
            }
            if options.op()? == Some(Op::New) {
                return Err(Failure::invalid(
                    "a second session to the same portal is not simulated by node-sim",
                ));
            }
            // As in the real tool, everything else operates on the session's node record.
            return self.act(&exactly(&session.node_key()), options);
        }
        if !options.ops.is_empty() {
            return Err(Failure::invalid("session mode: --op needs --sid"));
        }
        if options.logout || options.rescan {
            return self.act(&pattern, options);
        }
        self.list_sessions(&found, options)
    }

    /// The operations that node mode and session mode share.
    fn act(&mut self, pattern: &Pattern, options: &Options) -> Result<Exit, Failure> {
        if options.rescan {
            return self.rescan(pattern);
        }
        if options.logout {
            return self.logout(pattern);
        }
        let shows = !options.login && matches!(options.op()?, None | Some(Op::Show));
        if shows {
            record::must_be_readable(self.host)?;
        }
        let records = record::list(self.host, pattern).map_err(|failure| {
            if shows || failure.exit != Exit::Error {
                return failure;
            }
            Failure::new(
                Exit::Database,
                "Could not execute operation on all records: encountered iSCSI database failure",
            )
        })?;
        if records.is_empty() {
            if options.op()? == Some(Op::Delete) {
                record::must_not_be_truncated(self.host, pattern)?;
            }
            return Err(Failure::new(Exit::NoObjects, "No records found"));
        }
        if options.login {
            return Ok(self.login(&records));
        }
        match options.op()? {
            None | Some(Op::Show) => {
                for record in &records {
                    self.console.print(record.print(options.show));
                }
                Ok(Exit::Success)
            }
            Some(Op::Update) => self.update(records, &options.params),
            Some(Op::Delete) => self.delete(&records),
            Some(Op::New | Op::NonPersistent) => {
                Err(Failure::invalid("operation is not supported."))
            }
        }
    }

    fn new_record(&mut self, options: &Options) -> Result<Exit, Failure> {
        let (Some(iqn), Some(portal)) = (&options.target, &options.portal) else {
            return Err(Failure::invalid("--op new needs --targetname and --portal"));
        };
        let key = NodeKey {
            iqn: iqn.clone(),
            address: portal.host.clone(),
            port: portal.port.unwrap_or(DEFAULT_PORT),
        };
        // An existing record is replaced, with default settings.
        record::must_not_be_truncated(self.host, &exactly(&key))?;
        let mut record = Record::new(key, portal.tpgt, Origin::Static);
        record.take_defaults(&self.host.defaults());
        if let Some(tpgt) = record.tpgt {
            for old in record::list(self.host, &exactly(&record.key))?
                .iter()
                .filter(|old| old.tpgt == Some(tpgt))
            {
                record::delete(self.host, old)?;
            }
        }
        record::write(self.host, self.sessions.lock(), &mut record)?;
        let NodeKey { iqn, address, port } = &record.key;
        let tpgt = record.get("node.tpgt");
        self.console.print(format!("New iSCSI node [tcp:[hw=,ip=,net_if=,iscsi_if={IFACE}] {address},{port},{tpgt} {iqn}] added"));
        Ok(Exit::Success)
    }

    fn list_records(&mut self, options: &Options) -> Result<Exit, Failure> {
        let level = options.print.unwrap_or(0);
        if level > 1 {
            return Err(Failure::invalid(format!(
                "Invalid info level {level}. Try 0 or 1."
            )));
        }
        record::must_be_readable(self.host)?;
        let records = record::list(self.host, &Pattern::default())?;
        let truncated = record::truncated(self.host)?;
        if records.is_empty() && truncated.is_empty() {
            return Err(Failure::new(Exit::NoObjects, "No records found"));
        }
        for record in truncated.iter().filter(|_| level == 0) {
            self.console.print(print::truncated(record.name.as_deref()));
        }
        if level == 1 {
            self.console.print(print::nodes(&records));
            return Ok(Exit::Success);
        }
        for record in &records {
            self.console.print(print::node(record));
        }
        Ok(Exit::Success)
    }

    fn update(
        &mut self,
        mut records: Vec<Record>,
        params: &[(String, String)],
    ) -> Result<Exit, Failure> {
        if params.is_empty() {
            return Err(Failure::invalid("update requires name and value"));
        }
        // Write nothing unless all settings are valid.
        for record in &mut records {
            for (name, value) in params {
                record.set(name, value)?;
            }
        }
        for record in &mut records {
            record::write(self.host, self.sessions.lock(), record)?;
        }
        Ok(Exit::Success)
    }

    fn delete(&mut self, records: &[Record]) -> Result<Exit, Failure> {
        let mut first = Exit::Success;
        for record in records {
            if self.sessions.find(&exactly(&record.key)).is_empty() {
                record::delete(self.host, record)?;
                continue;
            }
            let NodeKey { iqn, address, port } = &record.key;
            self.console.warn(format!("record [iface: {IFACE}, target: {iqn}, portal: {address},{port}] is in use by a session: log out first"));
            first = keep_first(first, Exit::SessionExists);
        }
        Ok(first)
    }

    fn login(&mut self, records: &[Record]) -> Exit {
        let mut first = Exit::Success;
        for record in records {
            let wanted = record
                .get("node.session.nr_sessions")
                .parse()
                .unwrap_or(1_usize);
            let present = self.sessions.find(&exactly(&record.key)).len();
            if present >= wanted {
                let s = if wanted == 1 { "" } else { "s" };
                self.console.warn(format!(
                    "{IFACE}: {wanted} session{s} requested, but {present} already present."
                ));
                first = keep_first(first, Exit::SessionExists);
            }
            for _ in present..wanted {
                first = keep_first(first, self.login_once(record));
            }
        }
        if first != Exit::Success {
            self.console.warn("Could not log into all portals");
        }
        first
    }

    fn login_once(&mut self, record: &Record) -> Exit {
        let NodeKey { iqn, address, port } = &record.key;
        let session_text = format!("[iface: {IFACE}, target: {iqn}, portal: {address},{port}]");
        self.console.print(format!("Logging in to {session_text}"));
        match self.sessions.login(record) {
            Ok(_) => {
                self.console
                    .print(format!("Login to {session_text} successful."));
                Exit::Success
            }
            Err(failure) => {
                self.console
                    .warn(format!("Could not login to {session_text}."));
                self.console.warn(format!(
                    "initiator reported error ({}): {failure}",
                    failure.exit
                ));
                failure.exit
            }
        }
    }

    fn logout(&mut self, pattern: &Pattern) -> Result<Exit, Failure> {
        let found = self.sessions.find(pattern);
        if found.is_empty() {
            return Err(Failure::new(Exit::NoObjects, "No matching sessions found"));
        }
        for session in found {
            let session_text = describe(&session);
            self.console
                .print(format!("Logging out of session {session_text}"));
            self.sessions.logout(session)?;
            self.console
                .print(format!("Logout of {session_text} successful."));
        }
        Ok(Exit::Success)
    }

    fn rescan(&mut self, pattern: &Pattern) -> Result<Exit, Failure> {
        let found = self.sessions.find(pattern);
        if found.is_empty() {
            return Err(Failure::new(Exit::NoObjects, "No session found."));
        }
        for mut session in found {
            self.console
                .print(format!("Rescanning session {}", describe(&session)));
            self.sessions.rescan(&mut session)?;
        }
        Ok(Exit::Success)
    }

    fn list_sessions(&mut self, found: &[Session], options: &Options) -> Result<Exit, Failure> {
        if found.is_empty() {
            return Err(Failure::new(Exit::NoObjects, "No active sessions."));
        }
        match options.print {
            None | Some(0) => found
                .iter()
                .for_each(|session| self.console.print(print::session(session))),
            Some(level @ 1..=3) => {
                let initiator = self.host.initiator_name()?;
                self.console
                    .print(print::sessions(found, level, &initiator));
            }
            Some(level) => {
                return Err(Failure::invalid(format!(
                    "Invalid info level {level}. Try 0 - 3."
                )));
            }
        }
        Ok(Exit::Success)
    }

    fn hosts(&mut self) -> Result<Exit, Failure> {
        let found = self.sessions.find(&Pattern::default());
        if found.is_empty() {
            return Err(Failure::new(Exit::NoObjects, "No iSCSI hosts found."));
        }
        for session in &found {
            self.console.print(print::host(session));
        }
        Ok(Exit::Success)
    }

    fn ifaces(&mut self, options: &Options) -> Result<Exit, Failure> {
        if !matches!(options.op()?, None | Some(Op::Show)) {
            return Err(Failure::invalid(
                "interface records are not simulated by node-sim",
            ));
        }
        self.console.print(print::ifaces());
        Ok(Exit::Success)
    }
}

fn describe(session: &Session) -> String {
    format!(
        "[sid: {}, target: {}, portal: {},{}]",
        session.sid, session.iqn, session.address, session.port
    )
}

fn keep_first(first: Exit, next: Exit) -> Exit {
    if first == Exit::Success { next } else { first }
}

#[cfg(test)]
mod tests;
