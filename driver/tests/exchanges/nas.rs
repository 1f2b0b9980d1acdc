//! A stub NAS that returns recorded replies in order, whatever the request, and records the requests.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use serde_json::Value;

/// One request.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    headers: BTreeMap<String, String>,
    /// The form fields of its body.
    pub(crate) form: BTreeMap<String, String>,
}

impl Seen {
    /// A header, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// A stub NAS, served by a background thread.
#[derive(Debug)]
pub(crate) struct Nas {
    pub(crate) url: String,
    seen: Receiver<Seen>,
}

impl Nas {
    /// Returns these replies, one per request, and then stops listening.
    pub(crate) fn answering(replies: Vec<Value>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, seen) = mpsc::channel();
        thread::spawn(move || {
            for reply in replies {
                let (stream, _) = listener.accept().unwrap();
                // Record the request before the reply: a client that has a reply must find its request in `seen`.
                let _ = sender.send(read(&stream));
                answer(stream, &reply.to_string());
            }
        });
        Self { url, seen }
    }

    /// The requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.try_iter().collect()
    }
}

fn read(stream: &TcpStream) -> Seen {
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let path = line().split(' ').nth(1).unwrap().to_owned();
    let headers: BTreeMap<String, String> = std::iter::from_fn(|| {
        let header = line();
        let (name, value) = header.split_once(": ")?;
        Some((name.to_lowercase(), value.to_owned()))
    })
    .collect();
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    let form = url::form_urlencoded::parse(&body).into_owned().collect();
    Seen {
        path,
        headers,
        form,
    }
}

fn answer(mut stream: TcpStream, body: &str) {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // Ignore a client that has disconnected.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body.as_bytes()));
}
