//! A simulator embedded in its caller: no ports, no threads. With a seed and a frozen clock it is deterministic: the same
//! requests get the same replies, byte for byte.
//!
//! Latency, delays and hanging calls wait in tokio's time, which a test may pause.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{Method, Request, Response, header};
use serde_json::Value;
use tower::ServiceExt as _;

use crate::control;
use crate::instance::handle::Handle;
use crate::instance::running::{Opened, StartError, StateDir};
use crate::options::Builder;
use crate::server::http;
use crate::server::listener::Peer;

/// Bytes; far more than any reply in a test.
const MAX_BODY: usize = 64 << 20;

/// An embedded simulator. It stops when this is dropped; a temporary state directory is removed, a given one is kept.
pub struct Embedded {
    handle: Handle,
    api: Router,
    control: Router,
    client: SocketAddr,
    _folder: StateDir,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}

impl Deref for Embedded {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Embedded {
    pub(crate) fn new(builder: &Builder) -> Result<Self, StartError> {
        let Opened { server, folder } = Opened::new(builder)?;
        Ok(Self {
            api: http::router(Arc::clone(&server)),
            control: control::router(Arc::clone(&server), builder.clone()),
            client: SocketAddr::from(([127, 0, 0, 1], 1)),
            handle: Handle {
                server,
                builder: builder.clone(),
            },
            _folder: folder,
        })
    }

    /// Sends a request to the Web API. `None` means that the connection was closed without a reply. Dropping the future is like a
    /// client that disconnects.
    ///
    /// # Errors
    /// The body of the reply cannot be read.
    pub async fn answer(
        &self,
        mut request: Request<Body>,
    ) -> Result<Option<Response<Bytes>>, axum::Error> {
        let peer = Peer::at(self.client);
        request.extensions_mut().insert(ConnectInfo(peer.clone()));
        let Ok(answer) = self.api.clone().oneshot(request).await;
        let (head, body) = answer.into_parts();
        let body = to_bytes(body, MAX_BODY).await?;
        Ok((!peer.is_aborted()).then(|| Response::from_parts(head, body)))
    }

    /// Sends a request to the control port: the same methods, paths and bodies as over HTTP. Returns the body of the reply.
    ///
    /// # Errors
    /// The status is not a success; the error holds the body.
    pub async fn control(&self, method: Method, path: &str, body: &Value) -> io::Result<Value> {
        let wrong = |error: &dyn fmt::Display| io::Error::other(format!("{path}: {error}"));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "127.0.0.1")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()))
            .map_err(|error| wrong(&error))?;
        let Ok(answer) = self.control.clone().oneshot(request).await;
        let status = answer.status();
        let text = to_bytes(answer.into_body(), MAX_BODY)
            .await
            .map_err(|error| wrong(&error))?;
        if !status.is_success() {
            return Err(wrong(&String::from_utf8_lossy(&text)));
        }
        serde_json::from_slice(&text).map_err(|error| wrong(&error))
    }
}
