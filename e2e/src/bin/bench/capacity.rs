//! How dsm-sim scales with the number of LUNs: memory, create, get, list and delete.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use e2e::harness::nas::{Nas, Settings};
use futures::future::try_join_all;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Builder;

const CLIENTS: usize = 16;
const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];
const MEASURED: Duration = Duration::from_secs(2);
const LUN: &str = "SYNO.Core.ISCSI.LUN";

/// The results.
#[derive(Serialize)]
pub(crate) struct Capacity {
    /// Resident memory per LUN with ten thousand LUNs, bytes.
    memory_per_lun: f64,
    lines: Vec<Line>,
}

/// The results with this many LUNs on the NAS.
#[derive(Serialize)]
pub(crate) struct Line {
    luns: usize,
    /// Microseconds per LUN for the LUNs added last, with all clients in parallel.
    create_us: f64,
    /// `LUN.get` by uuid, of a different LUN each time.
    gets_per_second: f64,
    /// One `LUN.list` in milliseconds, and the size of its reply in bytes.
    list_ms: f64,
    list_bytes: usize,
    /// Resident memory, KiB; includes the journal of all calls so far.
    resident_kib: u64,
    /// Microseconds per LUN to delete these LUNs, after all later ones are deleted.
    delete_us: f64,
}

/// Clients of one NAS, each with its own connection.
struct Clients {
    connections: Vec<SendRequest<Empty<Bytes>>>,
    host: String,
    sid: String,
}

/// Fills a NAS with LUNs, then empties it.
///
/// # Errors
/// It does not start, or a call fails.
pub(crate) async fn measure(folder: &std::path::Path) -> Result<Capacity> {
    let settings = Settings {
        more: vec!["--model", "unlimited"],
        ..Settings::default()
    };
    let nas = Nas::start(folder, settings).await?;
    let memory_per_lun = memory_per_lun(&nas).await?;
    let mut clients = Clients::connect(&nas).await?;
    let mut uuids: Vec<String> = Vec::new();
    let mut lines = Vec::new();
    for luns in SIZES {
        let before = uuids.len();
        let started = Instant::now();
        let made = clients.each(before..luns, |n| {
            format!("create&name=lun-{n}&type=BLUN&location=/volume1&size=1073741824")
        });
        for answer in made.await? {
            uuids.push(answer["uuid"].as_str().context("uuid")?.to_owned());
        }
        let create_us = micros_each(started.elapsed(), luns - before);
        let gets_per_second = clients.gets(&uuids).await?;
        let (list_ms, list_bytes) = clients.list(luns).await?;
        lines.push(Line {
            luns,
            create_us,
            gets_per_second,
            list_ms,
            list_bytes,
            resident_kib: nas.resident_kib()?,
            delete_us: 0.0,
        });
    }
    for (line, before) in lines.iter_mut().zip([0, 10, 100, 1_000]).rev() {
        let started = Instant::now();
        let here = &uuids[before..line.luns];
        let gone = clients.each(0..here.len(), |n| format!("delete&uuid={}", here[n]));
        gone.await?;
        line.delete_us = micros_each(started.elapsed(), here.len());
    }
    clients.list(0).await?;
    Ok(Capacity {
        memory_per_lun,
        lines,
    })
}

/// Fills a fresh NAS through its control API, without DSM calls, then empties it.
async fn memory_per_lun(nas: &Nas) -> Result<f64> {
    let before = nas.resident_kib()?;
    nas.seed(SIZES[3]).await?;
    let kib = u32::try_from(nas.resident_kib()?.saturating_sub(before))?;
    nas.reset().await?;
    Ok(f64::from(kib) * 1024.0 / f64::from(u32::try_from(SIZES[3])?))
}

impl Clients {
    async fn connect(nas: &Nas) -> Result<Self> {
        let host = nas.api.trim_start_matches("http://").to_owned();
        let connections = try_join_all((0..CLIENTS).map(|_| async {
            let stream = TcpStream::connect(&host).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            anyhow::Ok(sender)
        }));
        Ok(Self {
            connections: connections.await?,
            host,
            sid: nas.session().await?.sid,
        })
    }

    /// Makes these calls of `SYNO.Core.ISCSI.LUN`, distributed over the clients; returns the `data` of each, in order.
    async fn each(
        &mut self,
        range: std::ops::Range<usize>,
        call: impl Fn(usize) -> String,
    ) -> Result<Vec<Value>> {
        let (host, sid, call) = (&self.host, &self.sid, &call);
        let start = range.start;
        let parts = self.connections.iter_mut().enumerate().map(|(first, one)| {
            let mine = range.clone().skip(first).step_by(CLIENTS);
            async move {
                let mut answers = Vec::new();
                for n in mine {
                    let query = format!("?api={LUN}&version=1&_sid={sid}&method={}", call(n));
                    answers.push((n, data(&ask(one, host, &query).await?)?));
                }
                anyhow::Ok(answers)
            }
        });
        let mut all: Vec<Value> = vec![Value::Null; range.len()];
        for (n, answer) in try_join_all(parts).await?.into_iter().flatten() {
            all[n - start] = answer;
        }
        Ok(all)
    }

    /// The clients share the CPUs with the NAS, so they do as little as possible: one thread, requests as prebuilt bytes.
    async fn gets(&self, uuids: &[String]) -> Result<f64> {
        let begin = format!(
            "GET /webapi/entry.cgi?api={LUN}&version=1&_sid={}&method=get&uuid=",
            self.sid
        );
        let end = format!(" HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        let request = |uuid: &String| format!("{begin}{uuid}{end}");
        let requests: Vec<String> = uuids.iter().map(request).collect();
        let host = self.host.clone();
        let measured = tokio::task::spawn_blocking(move || {
            let alone = Builder::new_current_thread().enable_all().build()?;
            alone.block_on(async {
                let started = Instant::now();
                let clients = (0..CLIENTS).map(|first| get_on(&host, &requests, first, started));
                let answered: u32 = try_join_all(clients).await?.iter().sum();
                anyhow::Ok(f64::from(answered) / started.elapsed().as_secs_f64())
            })
        });
        measured.await?
    }

    /// Time and size in bytes of one list, which must have `rows` rows.
    async fn list(&mut self, rows: usize) -> Result<(f64, usize)> {
        let query = format!("?api={LUN}&version=1&_sid={}&method=list", self.sid);
        let started = Instant::now();
        let answer = ask(&mut self.connections[0], &self.host, &query).await?;
        let took = started.elapsed().as_secs_f64() * 1e3;
        let found = data(&answer)?["luns"].as_array().context("luns")?.len();
        ensure!(found == rows, "{found} LUNs are listed, expected {rows}");
        Ok((took, answer.len()))
    }
}

/// One client's gets on its own connection: how many were answered within the measuring time.
async fn get_on(host: &str, requests: &[String], first: usize, started: Instant) -> Result<u32> {
    let mut stream = TcpStream::connect(host).await?;
    stream.set_nodelay(true)?;
    let mut answer = Vec::with_capacity(8192);
    let mut answered = 0;
    for request in requests.iter().cycle().skip(first) {
        if started.elapsed() >= MEASURED {
            break;
        }
        stream.write_all(request.as_bytes()).await?;
        answer.clear();
        // The body comes in chunks; the last one is empty.
        while !answer.ends_with(b"\r\n0\r\n\r\n") {
            ensure!(
                stream.read_buf(&mut answer).await? > 0,
                "the NAS closed the connection"
            );
        }
        ensure!(
            answer.ends_with(b"\"success\":true}\r\n0\r\n\r\n"),
            "LUN.get was refused: {}",
            String::from_utf8_lossy(&answer)
        );
        answered += 1;
    }
    Ok(answered)
}

async fn ask(connection: &mut SendRequest<Empty<Bytes>>, host: &str, query: &str) -> Result<Bytes> {
    let request = Request::get(format!("/webapi/entry.cgi{query}")).header("host", host);
    connection.ready().await?;
    let response = connection.send_request(request.body(Empty::new())?).await?;
    Ok(response.into_body().collect().await?.to_bytes())
}

fn data(answer: &Bytes) -> Result<Value> {
    let mut answer: Value = serde_json::from_slice(answer)?;
    ensure!(answer["success"] == true, "refused: {answer}");
    Ok(answer["data"].take())
}

fn micros_each(all: Duration, count: usize) -> f64 {
    all.as_secs_f64() * 1e6 / f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Human-readable table.
pub(crate) fn table(capacity: &Capacity) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "LUNs",
        "create µs",
        "get/s",
        "list ms",
        "list KiB",
        "resident MiB",
        "delete µs",
    ]);
    for line in &capacity.lines {
        table.add_row([
            line.luns.to_string(),
            format!("{:.0}", line.create_us),
            format!("{:.0}", line.gets_per_second),
            format!("{:.1}", line.list_ms),
            (line.list_bytes / 1024).to_string(),
            (line.resident_kib / 1024).to_string(),
            format!("{:.0}", line.delete_us),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

impl Capacity {
    pub(crate) fn memory(&self) -> String {
        format!("{:.0} bytes of memory for each LUN", self.memory_per_lun)
    }
}
