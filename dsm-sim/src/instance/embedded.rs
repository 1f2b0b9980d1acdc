//! A NAS inside of its caller: no ports, no threads, no time of its own. Whoever sends the same requests to one with the
//! same seed and a clock that stands still gets the same answers, byte for byte.
//!
//! What waits (latency, a delay, a call that hangs) waits in tokio's time, which a test may pause.

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
use crate::instance::running::{Folder, Opened, StartError};
use crate::options::Builder;
use crate::server::http;
use crate::server::listener::Peer;

/// Far more than any answer of a NAS in a test.
const LONGEST: usize = 64 << 20;

/// A NAS that is a value. It is gone when this is dropped; its folder stays, if it was given one.
pub struct Embedded {
    knobs: Handle,
    api: Router,
    control: Router,
    client: SocketAddr,
    _folder: Folder,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}

impl Deref for Embedded {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.knobs
    }
}

impl Embedded {
    pub(crate) fn new(builder: &Builder) -> Result<Self, StartError> {
        let Opened { server, folder } = Opened::new(builder)?;
        Ok(Self {
            api: http::router(Arc::clone(&server)),
            control: control::router(Arc::clone(&server), builder.clone()),
            client: SocketAddr::from(([127, 0, 0, 1], 1)),
            knobs: Handle {
                server,
                builder: builder.clone(),
            },
            _folder: folder,
        })
    }

    /// Answers a request to the Web API. `None`: the connection was cut. Dropping this is a client that hangs up.
    ///
    /// # Errors
    /// The answer has no end.
    pub async fn answer(
        &self,
        mut request: Request<Body>,
    ) -> Result<Option<Response<Bytes>>, axum::Error> {
        let peer = Peer::at(self.client);
        request.extensions_mut().insert(ConnectInfo(peer.clone()));
        let Ok(answer) = self.api.clone().oneshot(request).await;
        let (head, body) = answer.into_parts();
        let body = to_bytes(body, LONGEST).await?;
        Ok((!peer.is_aborted()).then(|| Response::from_parts(head, body)))
    }

    /// Turns a knob of the control port: the same methods, paths and bodies, and the body of the answer.
    ///
    /// # Errors
    /// The knob says what is wrong.
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
        let text = to_bytes(answer.into_body(), LONGEST)
            .await
            .map_err(|error| wrong(&error))?;
        if !status.is_success() {
            return Err(wrong(&String::from_utf8_lossy(&text)));
        }
        serde_json::from_slice(&text).map_err(|error| wrong(&error))
    }
}
