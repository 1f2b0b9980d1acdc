//! A TCP proxy between driver and NAS that records the traffic and can edit what the driver sends.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Forwards everything to `nas` and records it; `edit` may change what the driver sends, but not its length. Returns
/// the proxy's address and the recording.
pub(crate) async fn wiretap(
    nas: &str,
    edit: fn(&mut [u8]),
) -> Result<(String, Arc<Mutex<Vec<u8>>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (nas, kept) = (nas.trim_start_matches("http://").to_owned(), seen.clone());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = TcpStream::connect(&nas).await else {
                return;
            };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::spawn(pass(from_client, to_server, kept.clone(), edit));
            tokio::spawn(pass(from_server, to_client, kept.clone(), |_| {}));
        }
    });
    Ok((url, seen))
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    seen: Arc<Mutex<Vec<u8>>>,
    edit: fn(&mut [u8]),
) {
    let mut chunk = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        edit(&mut chunk[..read]);
        seen.lock()
            .expect("not poisoned")
            .extend_from_slice(&chunk[..read]);
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
}
