//! Remote execution on the second machine: runs and starts programs, reads files, and relays a connection to a unix socket.
//!
//! A request is a line of JSON on its own connection, over a virtual cable that carries nothing else. There is no encryption:
//! the cable ends in the other machine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::io::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional,
};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

use super::guest;
use crate::harness::process::{Process, run};
use crate::harness::until::until;

/// Connect timeout: a running machine accepts at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Reply timeout: programs may wait for a NAS that is down.
const REPLY_TIMEOUT: Duration = Duration::from_secs(180);

/// A request.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Runs a program to its end; replies with its output.
    Run(Vec<String>),
    /// Starts a program with this log file; replies with its process id.
    Start(Vec<String>, String),
    /// Replies with the content of a file.
    Read(String),
    /// Replies with the names in a folder, one per line.
    List(String),
    /// Replies with an empty line, then relays the connection to this unix socket.
    Relay(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    said: Result<String, String>,
}

/// Serves requests forever.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| address.to_owned())?;
    guest::report("serving")?;
    loop {
        let (connection, _) = listener.accept().await?;
        tokio::spawn(async move {
            if let Err(error) = answer(connection).await {
                eprintln!("a request failed: {error:#}");
            }
        });
    }
}

async fn answer(connection: TcpStream) -> Result<()> {
    let mut connection = BufReader::new(connection);
    let mut line = String::new();
    connection.read_line(&mut line).await?;
    let said = match serde_json::from_str(&line)? {
        Request::Relay(socket) => {
            let mut socket = UnixStream::connect(&socket)
                .await
                .with_context(|| socket.clone())?;
            connection.write_all(b"\n").await?;
            copy_bidirectional(&mut connection, &mut socket).await?;
            return Ok(());
        }
        Request::Run(argv) => {
            tokio::task::spawn_blocking(move || run(&program(&argv[0]), &argv[1..])).await?
        }
        Request::Start(argv, log) => start(&argv, &log),
        Request::Read(file) => read(&file),
        Request::List(folder) => list(&folder),
    };
    let answer = Answer {
        said: said.map_err(|error| format!("{error:#}")),
    };
    Ok(connection.write_all(&serde_json::to_vec(&answer)?).await?)
}

/// The path of a program of this workspace, or else the name of a host program.
fn program(name: &str) -> String {
    crate::harness::process::binary(name).map_or_else(
        |_| name.to_owned(),
        |path| path.to_string_lossy().into_owned(),
    )
}

fn read(file: &str) -> Result<String> {
    let bytes = std::fs::read(file).with_context(|| file.to_owned())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn list(folder: &str) -> Result<String> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.to_owned())?;
    let mut names = String::new();
    for entry in entries {
        names += &entry?.file_name().to_string_lossy();
        names.push('\n');
    }
    Ok(names)
}

/// Starts a program and returns its process id. Nothing owns it: it ends when it is killed, or with the machine.
fn start(argv: &[String], log: &str) -> Result<String> {
    let process = Process::tool(&program(&argv[0]), &argv[1..], Path::new(log))?;
    let id = process.id().to_string();
    process.disown();
    Ok(id)
}

/// A client of the other machine.
#[derive(Clone, Debug)]
pub struct Remote {
    address: String,
}

impl Remote {
    /// The machine that serves at `address`.
    pub fn at(address: &str) -> Self {
        Self {
            address: address.to_owned(),
        }
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// It does not, in time.
    pub async fn ready(&self) -> Result<()> {
        let serves = async || Ok(self.list("/").await.is_ok());
        until("the other machine serves", serves, |serves| *serves)
            .await
            .map(drop)
    }

    /// Runs a program there to its end; returns its output.
    ///
    /// # Errors
    /// The program fails, or the machine does not reply.
    pub async fn run(&self, argv: &[&str]) -> Result<String> {
        self.send(&Request::Run(
            argv.iter().map(|argument| (*argument).to_owned()).collect(),
        ))
        .await
    }

    /// The content of a file there. Starts no process, unlike `cat`: cheap enough to poll.
    ///
    /// # Errors
    /// The file cannot be read, or the machine does not reply.
    pub async fn read(&self, file: &str) -> Result<String> {
        self.send(&Request::Read(file.to_owned())).await
    }

    /// The names in a folder there.
    ///
    /// # Errors
    /// The folder cannot be listed, or the machine does not reply.
    pub async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let names = self.send(&Request::List(folder.to_owned())).await?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Starts a program there; returns its process id.
    ///
    /// # Errors
    /// It does not start, or the machine does not reply.
    pub async fn start(&self, argv: &[&str], log: &str) -> Result<u32> {
        let argv = argv.iter().map(|argument| (*argument).to_owned()).collect();
        Ok(self
            .send(&Request::Start(argv, log.to_owned()))
            .await?
            .parse()?)
    }

    /// Starts a program there without a log.
    ///
    /// # Errors
    /// It does not start, or the machine does not reply.
    pub async fn start_and_forget(&self, argv: &[&str]) -> Result<()> {
        self.start(argv, "/dev/null").await.map(drop)
    }

    /// A gRPC channel to a unix socket there.
    ///
    /// # Errors
    /// Nothing listens there.
    pub async fn channel(&self, socket: &str) -> Result<Channel> {
        let (address, request) = (
            self.address.clone(),
            serde_json::to_string(&Request::Relay(socket.to_owned()))?,
        );
        let connector = tower::service_fn(move |_: Uri| {
            let (address, request) = (address.clone(), request.clone());
            async move {
                let mut connection = TcpStream::connect(address).await?;
                connection
                    .write_all(format!("{request}\n").as_bytes())
                    .await?;
                // Otherwise a socket that does not exist yet would look like a broken connection.
                connection.read_u8().await?;
                Ok::<_, std::io::Error>(TokioIo::new(connection))
            }
        });
        Ok(Endpoint::from_static("http://csi")
            .connect_with_connector(connector)
            .await?)
    }

    async fn send(&self, request: &Request) -> Result<String> {
        let exchange = async {
            let connect = TcpStream::connect(&self.address);
            let mut connection = tokio::time::timeout(CONNECT_TIMEOUT, connect).await??;
            connection
                .write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())
                .await?;
            let mut answer = Vec::new();
            connection.read_to_end(&mut answer).await?;
            Ok::<_, anyhow::Error>(serde_json::from_slice::<Answer>(&answer)?)
        };
        let answer = tokio::time::timeout(REPLY_TIMEOUT, exchange)
            .await
            .with_context(|| format!("no answer to {request:?}"))??;
        match answer.said {
            Ok(said) => Ok(said),
            Err(error) => bail!("on the other machine: {error}"),
        }
    }
}
