//! A cluster as far as helm asks about it while it renders: a release, and the Secrets that are there. So `lookup` finds something.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

/// Helm asks on this machine and at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until this process ends.
#[derive(Debug)]
pub(super) struct Cluster {
    address: SocketAddr,
}

impl Cluster {
    /// One of this release of Kubernetes, with these objects of kind Secret.
    ///
    /// # Errors
    /// There is no free port.
    pub(super) fn start(release: &str, secrets: Vec<Value>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let release = release.to_owned();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Who goes away in the middle of an answer does not want it.
                let _ = serve(stream, &release, &secrets);
            }
        });
        Ok(Self { address })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn serve(mut stream: TcpStream, release: &str, secrets: &[Value]) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let found = answer(path, release, secrets);
    let status = if found.is_some() {
        "200 OK"
    } else {
        "404 Not Found"
    };
    let body = found.unwrap_or_else(|| {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})
    });
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn answer(path: &str, release: &str, secrets: &[Value]) -> Option<Value> {
    match path {
        "/version" => {
            let mut parts = release.split('.');
            Some(json!({
                "major": parts.next(), "minor": parts.next(), "gitVersion": format!("v{release}"),
            }))
        }
        "/api" => Some(json!({"kind": "APIVersions", "versions": ["v1"]})),
        "/apis" => Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})),
        "/api/v1" => Some(json!({
            "kind": "APIResourceList", "groupVersion": "v1",
            "resources": [{"name": "secrets", "namespaced": true, "kind": "Secret", "verbs": ["get"]}],
        })),
        _ => secrets.iter().find(|secret| place(secret) == path).cloned(),
    }
}

fn place(secret: &Value) -> String {
    let text = |field: &str| secret["metadata"][field].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    format!("/api/v1/namespaces/{namespace}/secrets/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_its_release_and_its_secrets_and_nothing_else() {
        let secret = json!({"kind": "Secret", "metadata": {"name": "a", "namespace": "ns"}});
        let there = [secret.clone()];
        let ask = |path| answer(path, "1.37.2", &there);
        assert_eq!(ask("/api/v1/namespaces/ns/secrets/a"), Some(secret));
        assert_eq!(ask("/api/v1/namespaces/other/secrets/a"), None);
        assert_eq!(ask("/version").unwrap()["minor"], "37");
    }
}
