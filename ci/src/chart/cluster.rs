//! A fake Kubernetes API server for helm: a version and Secrets, so that the template function `lookup` finds something.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

/// Timeout for reading a request, which comes from a local helm.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The address of a server that runs until this process ends.
#[derive(Debug)]
pub(super) struct Cluster {
    address: SocketAddr,
}

impl Cluster {
    /// Starts a server for this Kubernetes release, with these Secrets.
    ///
    /// # Errors
    /// When there is no free port.
    pub(super) fn start(release: &str, secrets: Vec<Value>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let release = release.to_owned();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // The client may have closed the connection.
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
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let found = response(path, release, secrets);
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

fn response(path: &str, release: &str, secrets: &[Value]) -> Option<Value> {
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
        _ => secrets
            .iter()
            .find(|secret| api_path(secret) == path)
            .cloned(),
    }
}

fn api_path(secret: &Value) -> String {
    let text = |field: &str| secret["metadata"][field].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    format!("/api/v1/namespaces/{namespace}/secrets/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_serves_its_version_and_its_secrets_and_nothing_else() {
        let secret = json!({"kind": "Secret", "metadata": {"name": "a", "namespace": "ns"}});
        let secrets = [secret.clone()];
        let ask = |path| response(path, "1.37.2", &secrets);
        assert_eq!(ask("/api/v1/namespaces/ns/secrets/a"), Some(secret));
        assert_eq!(ask("/api/v1/namespaces/other/secrets/a"), None);
        assert_eq!(ask("/version").unwrap()["minor"], "37");
    }
}
