//! `/metrics`, `/healthz` and `/readyz` over HTTP/1.1: for Prometheus and for whoever starts and stops the job.
//!
//! In: one GET or HEAD a connection. Out: its answer, and the connection's end. Everything is bounded: connections, the
//! length of a request, the time that a peer may take. Nothing can be changed from here.

use super::metrics;
use crate::engine::control::Control;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Connections served at the same time; further ones are closed at once.
const CONNECTIONS_MAX: usize = 16;
/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// How long one connection may take.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Listens at `address` until the runtime ends. Must be called inside a tokio runtime. `Err`: why it cannot.
pub fn serve(address: SocketAddr, control: Arc<Control>) -> Result<SocketAddr, String> {
    let listen = || -> std::io::Result<TcpListener> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    let failed = |error| format!("--metrics {address}: {error}");
    let listener = listen().map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    tokio_uring::spawn(async move {
        let open = Rc::new(Cell::new(0usize));
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            };
            if open.get() >= CONNECTIONS_MAX {
                continue;
            }
            let (control, open) = (control.clone(), open.clone());
            open.set(open.get() + 1);
            tokio_uring::spawn(async move {
                // Whoever is too slow, or has gone, gets nothing.
                let _ = tokio::time::timeout(TIME_MAX, connection(&mut stream, &control)).await;
                open.set(open.get() - 1);
            });
        }
    });
    Ok(bound)
}

async fn connection(stream: &mut TcpStream, control: &Control) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX {
            return respond(stream, 431, "text/plain", "the request is too long\n", true).await;
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    let with_body = method != "HEAD";
    if !matches!(method, "GET" | "HEAD") {
        return respond(stream, 405, "text/plain", "only GET and HEAD\n", true).await;
    }
    match path {
        "/metrics" => {
            let text = metrics::render(&control.status());
            respond(stream, 200, "text/plain; version=0.0.4; charset=utf-8", &text, with_body).await
        }
        "/healthz" => respond(stream, 200, "text/plain", &format!("{}\n", control.status().phase), with_body).await,
        "/readyz" => {
            let status = control.status();
            let code = if status.in_step { 200 } else { 503 };
            respond(stream, code, "text/plain", &format!("{}\n", status.phase), with_body).await
        }
        _ => respond(stream, 404, "text/plain", "/metrics, /healthz or /readyz\n", with_body).await,
    }
}

async fn respond(stream: &mut TcpStream, code: u16, kind: &str, body: &str, with_body: bool) -> std::io::Result<()> {
    let reason = match code {
        200 => "OK",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        _ => "Service Unavailable",
    };
    let mut response = format!(
        "HTTP/1.1 {code} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if with_body {
        response.push_str(body);
    }
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_has_its_answer_and_nothing_else_harms() {
        tokio_uring::start(async {
            let control = Arc::new(Control::default());
            let address = serve(([127, 0, 0, 1], 0).into(), control).unwrap();
            let ask = async |request: &[u8]| {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(request).await.unwrap();
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer).await;
                String::from_utf8(answer).unwrap()
            };
            let metrics = ask(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("\ndf2redis_in_step 0\n"), "{metrics}");
            assert!(ask(b"GET /healthz HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"));
            assert!(ask(b"GET /readyz HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 503"));
            let head = ask(b"HEAD /metrics?a=b HTTP/1.1\r\n\r\n").await;
            assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
            assert!(ask(b"GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
            assert!(ask(b"POST /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405"));
            assert!(ask(b"\xff\r\n\r\n").await.starts_with("HTTP/1.1 405"));
            let long = ask(&[b'x'; 8193]).await;
            assert!(long.is_empty() || long.starts_with("HTTP/1.1 431"), "{long}");
        });
    }
}
