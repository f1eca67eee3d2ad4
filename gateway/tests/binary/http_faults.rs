//! Clients that are slow, greedy, or gone: none holds the gateway up, and each is told why where it can be.
//!
//! Tests are named after the rows of the fault table.

mod connections;
mod forms;
mod half_close;
mod memory;
mod origins;
mod requests;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{self, Gateway, PATIENCE};

/// A client that is written byte by byte.
struct Client {
    stream: TcpStream,
}

impl Client {
    fn of(gateway: &Gateway) -> Self {
        let stream = TcpStream::connect(gateway.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    fn sending(gateway: &Gateway, bytes: impl AsRef<[u8]>) -> Self {
        let mut client = Self::of(gateway);
        client.stream.write_all(bytes.as_ref()).unwrap();
        client
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Reads one answer with a body of stated length.
    fn answer(&mut self) -> String {
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            assert_eq!(self.stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&answer));
            answer.push(byte[0]);
        }
        let head = String::from_utf8(answer).unwrap();
        let length = head.split_once("content-length: ").unwrap().1.split_once('\r').unwrap().0;
        let mut body = vec![0; length.parse().unwrap()];
        self.stream.read_exact(&mut body).unwrap();
        head + &String::from_utf8(body).unwrap()
    }

    /// Everything that comes until the connection is closed; a reset closes it, too.
    fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let outcome = self.stream.read_to_end(&mut rest);
        let timed_out = outcome.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!timed_out, "not closed after {PATIENCE:?}: {}", String::from_utf8_lossy(&rest));
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Sends a byte now and then until the connection is closed; returns what came, and when.
    fn drip(mut self, bytes: &[u8]) -> (String, Duration) {
        let started = Instant::now();
        let mut writer = self.stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let is_open = |byte: &u8| {
                    std::thread::sleep(Duration::from_millis(30));
                    writer.write_all(&[*byte]).is_ok()
                };
                assert!(!bytes.iter().all(is_open), "it was never closed");
            });
            let rest = self.rest();
            let took = started.elapsed();
            let _ = self.stream.shutdown(Shutdown::Both);
            (rest, took)
        })
    }
}

/// A request for the vector of one text.
fn embed_request(text: &str) -> String {
    let body = json!({ "texts": [text] }).to_string();
    format!("POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn assert_took(took: Duration, least_ms: u64, most_ms: u64) {
    let expected = Duration::from_millis(least_ms)..Duration::from_millis(most_ms);
    assert!(expected.contains(&took), "{took:?} is not in {expected:?}");
}

#[test]
fn row_19_a_head_sent_one_byte_a_second_is_closed() {
    let gateway = Gateway::fake(&["--workers", "1", "--header-timeout", "500ms"]);
    let head = "GET /livez HTTP/1.1\r\nhost: localhost\r\n".to_owned() + &"x: y\r\n".repeat(50);
    let (answer, took) = Client::of(&gateway).drip(head.as_bytes());
    assert_eq!(answer, "");
    assert_took(took, 450, 3000);
}

#[test]
fn row_19_a_client_that_sends_nothing_is_closed() {
    let gateway = Gateway::fake(&["--workers", "1", "--header-timeout", "500ms"]);
    let started = Instant::now();
    assert_eq!(Client::of(&gateway).rest(), "");
    assert_took(started.elapsed(), 450, 3000);
}

#[test]
fn row_19_the_time_of_a_second_head_counts_from_its_first_byte() {
    let gateway = Gateway::fake(&["--workers", "1", "--header-timeout", "300ms", "--idle-timeout", "1h"]);
    let mut client = Client::sending(&gateway, "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(client.answer().starts_with("HTTP/1.1 200 "));
    // Idle for longer than a head may take.
    std::thread::sleep(Duration::from_millis(700));
    client.send("GET /livez HTTP/1.1\r\n");
    client.send("host: localhost\r\n\r\n");
    assert!(client.answer().starts_with("HTTP/1.1 200 "));
    let (answer, took) = client.drip("GET /livez HTTP/1.1\r\n".repeat(5).as_bytes());
    assert_eq!(answer, "");
    assert_took(took, 280, 3000);
}

#[test]
fn an_idle_connection_stays_open_for_the_idle_timeout() {
    let gateway = Gateway::fake(&["--workers", "1", "--header-timeout", "100ms", "--idle-timeout", "800ms"]);
    let mut client = Client::sending(&gateway, "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(client.answer().starts_with("HTTP/1.1 200 "));
    let started = Instant::now();
    assert_eq!(client.rest(), "");
    assert_took(started.elapsed(), 750, 3000);
}

#[test]
fn row_19_a_body_sent_one_byte_a_second_is_answered_408() {
    let gateway = Gateway::fake(&["--workers", "1", "--body-timeout", "500ms"]);
    let head = "POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 400\r\n\r\n";
    let (answer, took) = Client::sending(&gateway, head).drip(&[b' '; 400]);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_timeout"), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert_took(took, 450, 3000);
    assert_eq!(gateway.metric("akidb_requests_rejected_total{code=\"body_timeout\"}"), 1.0);
}

#[test]
fn row_20_a_client_that_does_not_read_is_closed() {
    let mut command = support::fake_command();
    command.args(["--workers", "1", "--write-timeout", "500ms"]).env("AKIDB_LOG", "info,akidb_gateway=debug");
    let gateway = Gateway::start(command, None);
    let mut client = Client::of(&gateway);
    client.stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // More answers than the buffers of two sockets hold, some 10 KB each.
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let _closed_or_sent = client.stream.write_all(request.repeat(5000).as_bytes());
    gateway.logged("connection closed", |line| line["reason"] == "the client does not read");
    assert!(client.rest().matches("HTTP/1.1 200 ").count() < 5000, "everything was sent");
    assert_eq!(gateway.embed(&["a"]).status, 200);
}

#[test]
fn row_20_a_client_that_reads_slowly_gets_everything() {
    // In proportion to the default of 30 s: a client that reads 13 kB/s.
    let gateway = Gateway::fake(&["--workers", "1", "--write-timeout", "2s"]);
    gateway.wait_until_ready();
    let count = 1000;
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(count - 1);
    let last = "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut client = Client::sending(&gateway, request + last);
    let mut received = Vec::new();
    let started = Instant::now();
    let mut piece = vec![0; 10_000];
    while started.elapsed() < Duration::from_secs(9) {
        let length = client.stream.read(&mut piece).unwrap();
        assert!(length > 0, "closed after {:?}", started.elapsed());
        received.extend_from_slice(&piece[..length]);
        std::thread::sleep(Duration::from_millis(50));
    }
    client.stream.read_to_end(&mut received).unwrap();
    assert_eq!(String::from_utf8(received).unwrap().matches("HTTP/1.1 200 ").count(), count);
}

#[test]
fn row_31_a_head_under_way_does_not_hold_up_the_end() {
    let mut gateway = Gateway::fake(&["--workers", "1", "--header-timeout", "1h"]);
    gateway.wait_until_ready();
    let silent = Client::of(&gateway);
    let partial = Client::sending(&gateway, "GET /livez HTTP/1.1\r\nho");
    let mut second = Client::sending(&gateway, "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n");
    second.answer();
    second.send("GET /li");
    let started = Instant::now();
    gateway.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    drop((silent, partial, second));
}
