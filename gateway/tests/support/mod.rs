//! Drives the built binary: starts it on a free port, talks HTTP to it, reads its log, and ends it.
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::allow_attributes,
    unreachable_pub,
    reason = "every test binary compiles this and uses another part of it; a test may panic and print"
)]

mod processes;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub use processes::{MemoryWatch, children, is_alive, kill, open_descriptors, resident_bytes};

/// Longest wait for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const MINILM: &str = "all-minilm-l6-v2";

/// The checkout's root.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The workers' Python. Tests never go on without it.
pub fn python() -> PathBuf {
    let python = checkout().join("sidecar-py/.venv/bin/python");
    assert!(python.is_file(), "{} is missing: run `make setup-dev` first", python.display());
    python
}

pub fn fake_model() -> String {
    checkout().join("gateway/tests/data/fake_model").to_string_lossy().into_owned()
}

/// A running gateway. Dropping it kills it, and with it its workers.
pub struct Gateway {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Log>,
    control: Option<tempfile::TempDir>,
}

/// Lines of the log so far, parsed.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<Value>>,
    more: Condvar,
}

impl Log {
    fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| wanted(line)) {
                return Some(line.clone());
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            lines = self.more.wait_timeout(lines, left).unwrap().0;
        }
    }
}

/// A command for the built binary with none of this machine's settings.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_akidb-gateway"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AKIDB_")) {
        command.env_remove(name);
    }
    command.env_remove("VIRTUAL_ENV").stdin(Stdio::null());
    command
}

/// A command for the built binary with fake workers on the fake model.
pub fn fake_command() -> Command {
    fake_command_on(Path::new(&fake_model()))
}

/// The same, on another model.
pub fn fake_command_on(model: &Path) -> Command {
    let mut command = fake_workers();
    command.arg("--model").arg(model);
    command
}

/// A command for the built binary with fake workers.
pub fn fake_workers() -> Command {
    let folder = python().parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&path))).unwrap();
    let worker = checkout().join("sidecar-py/tests/fake_worker.py");
    let mut command = command();
    command.env("PATH", path).env("AKIDB_PYTHON", worker);
    command
}

/// The same command for a process that may have no more descriptors.
pub fn with_descriptors(command: &Command, count: usize) -> Command {
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("ulimit -n {count}; exec \"$0\" \"$@\"")).arg(command.get_program());
    limited.args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

/// Makes a folder with the fake model, some of whose files say something else, or are there besides.
pub fn write_model(folder: &Path, files: &[(&str, Value)]) {
    for file in ["config.json", "tokenizer.json"] {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::copy(Path::new(&fake_model()).join(file), folder.join(file)).unwrap();
    }
    for (name, content) in files {
        let file = folder.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content.to_string()).unwrap();
    }
}

impl Gateway {
    /// Real MLX workers on all-minilm-l6-v2, ready.
    pub fn real(arguments: &[&str]) -> Self {
        python();
        let mut command = command();
        command.args(["--model", MINILM]).args(arguments);
        let gateway = Self::start(command, None);
        gateway.wait_until_ready();
        gateway
    }

    /// Fake workers that behave until told otherwise, not waited for.
    pub fn fake(arguments: &[&str]) -> Self {
        Self::misbehaving(&json!({}), arguments)
    }

    /// Fake workers with a control file.
    pub fn misbehaving(misbehaviour: &Value, arguments: &[&str]) -> Self {
        Self::on_model(&[], misbehaviour, arguments)
    }

    /// The same, on a model some of whose files say something else, or are there besides.
    pub fn on_model(files: &[(&str, Value)], misbehaviour: &Value, arguments: &[&str]) -> Self {
        let control = tempfile::tempdir().unwrap();
        let file = control.path().join("control.json");
        std::fs::write(&file, misbehaviour.to_string()).unwrap();
        let model = control.path().join("model");
        write_model(&model, files);
        let mut command = fake_command_on(&model);
        command.env("AKIDB_FAKE_CONTROL", file).args(["--served-model-name", "fake"]).args(arguments);
        Self::start(command, Some(control))
    }

    pub fn start(mut command: Command, control: Option<tempfile::TempDir>) -> Self {
        command.env("AKIDB_LISTEN", "127.0.0.1:0");
        Self::run(command, control)
    }

    /// On an address that is known before.
    pub fn start_on(mut command: Command, address: &str) -> Self {
        command.env("AKIDB_LISTEN", address);
        Self::run(command, None)
    }

    fn run(mut command: Command, control: Option<tempfile::TempDir>) -> Self {
        command.env("AKIDB_LOG_FORMAT", "json").stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new(Log::default());
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("{line}");
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                writer.lines.lock().unwrap().push(value);
                writer.more.notify_all();
            }
        });
        let listening = log.wait_for(|line| line["message"] == "listening").expect("it never listened");
        let address = listening["address"].as_str().unwrap().parse().unwrap();
        Self { child, address, log, control }
    }

    /// Tells the fake workers how to behave from their next batch on.
    pub fn misbehave(&self, misbehaviour: &Value) {
        let folder = self.control.as_ref().expect("only fake workers misbehave").path();
        let next = folder.join("next.json");
        std::fs::write(&next, misbehaviour.to_string()).unwrap();
        std::fs::rename(next, folder.join("control.json")).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of the log.
    pub fn logged(&self, message: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let line = self.log.wait_for(|line| line["message"] == message && wanted(line));
        line.unwrap_or_else(|| panic!("`{message}` was never logged"))
    }

    /// Lines of the log with this message so far.
    pub fn count_logged(&self, message: &str) -> usize {
        self.log.lines.lock().unwrap().iter().filter(|line| line["message"] == message).count()
    }

    pub fn log_contains(&self, text: &str) -> bool {
        self.log.lines.lock().unwrap().iter().any(|line| line.to_string().contains(text))
    }

    pub fn get(&self, path: &str) -> Answer {
        Answer::fetch(&format!("http://{}{path}", self.address), None)
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        Answer::fetch(&format!("http://{}{path}", self.address), Some(body))
    }

    /// Like [`Self::post`], but the gateway may close the connection before it has read everything.
    pub fn try_post(&self, path: &str, body: &str) -> Option<Answer> {
        let request = agent().post(format!("http://{}{path}", self.address));
        request.send(body).ok().map(|response| Answer::of(Ok(response)))
    }

    /// Like [`Self::get`], with one more header.
    pub fn get_with(&self, path: &str, (name, value): (&str, &str)) -> Answer {
        Answer::of(agent().get(format!("http://{}{path}", self.address)).header(name, value).call())
    }

    /// Like [`Self::post`], with one more header.
    pub fn post_with(&self, path: &str, (name, value): (&str, &str), body: &str) -> Answer {
        let request = agent().post(format!("http://{}{path}", self.address)).header(name, value);
        Answer::of(request.send(body))
    }

    pub fn embed(&self, texts: &[&str]) -> Answer {
        self.post("/api/v1/embed", &json!({ "texts": texts }).to_string())
    }

    /// Sends a request without waiting for its answer.
    pub fn send_embed(&self, text: &str) -> std::net::TcpStream {
        let body = json!({"texts": [text]}).to_string();
        let mut stream = std::net::TcpStream::connect(self.address).unwrap();
        let length = body.len();
        let head =
            format!("POST /api/v1/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
        std::io::Write::write_all(&mut stream, (head + &body).as_bytes()).unwrap();
        stream
    }

    /// The vectors of an answer that must be 200.
    pub fn vectors(&self, texts: &[&str]) -> Vec<Vec<f32>> {
        let answer = self.embed(texts);
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.vectors()
    }

    pub fn health(&self) -> Value {
        self.get("/health").json()
    }

    pub fn worker_pids(&self) -> Vec<u32> {
        let health = self.health();
        let workers = health["workers"].as_array().unwrap();
        workers.iter().filter_map(|worker| Some(u32::try_from(worker["pid"].as_u64()?).unwrap())).collect()
    }

    /// The value of a metric, labels included in its name.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text;
        let line =
            text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next())
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    }

    /// Waits until every worker is ready.
    pub fn wait_until_ready(&self) {
        self.eventually("every worker is ready", |gateway| {
            let health = gateway.health();
            health["workers"].as_array().unwrap().iter().all(|worker| worker["state"] == "ready")
        });
    }

    pub fn eventually(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "not so after {PATIENCE:?}: {what}; {}", self.health());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Watches how much memory it takes from now on.
    pub fn watch_memory(&self) -> MemoryWatch {
        MemoryWatch::start(self.pid())
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        kill(self.pid(), signal);
    }

    /// Waits for the process to end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the gateway does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
}

impl Answer {
    /// Sends JSON, or asks for a page where there is none to send.
    pub fn fetch(url: &str, body: Option<&str>) -> Self {
        Self::of(match body {
            Some(body) => agent().post(url).header("content-type", "application/json").send(body),
            None => agent().get(url).call(),
        })
    }

    fn of(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Self {
        let mut response = result.expect("no answer from the gateway");
        let header = |(name, value): (&ureq::http::HeaderName, &ureq::http::HeaderValue)| {
            (name.to_string(), value.to_str().unwrap().to_owned())
        };
        Self {
            status: response.status().as_u16(),
            headers: response.headers().iter().map(header).collect(),
            text: response.body_mut().with_config().limit(1 << 30).read_to_string().unwrap(),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// Status and `error.code`.
    pub fn code(&self) -> (u16, String) {
        (self.status, self.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    #[expect(clippy::cast_possible_truncation, reason = "the numbers were f32 before they were JSON")]
    pub fn vectors(&self) -> Vec<Vec<f32>> {
        let json = self.json();
        let vectors = json["embeddings"].as_array().unwrap().iter();
        vectors
            .map(|vector| vector.as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect())
            .collect()
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE)).build().into()
}

pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Embeds with fake workers; every vector must be right. Returns how long it took.
pub fn embed_right(gateway: &Gateway, texts: &[&str]) -> Duration {
    let started = Instant::now();
    let vectors = gateway.vectors(texts);
    for (text, vector) in texts.iter().zip(&vectors) {
        assert_eq!(*vector, fake_vector(text), "{text}");
    }
    started.elapsed()
}

/// How often workers were started again for a reason.
pub fn restarts(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!("akidb_worker_restarts_total{{reason=\"{reason}\"}}"))
}

/// Processes started so far, over all workers.
pub fn generations(gateway: &Gateway) -> u64 {
    let health = gateway.health();
    health["workers"].as_array().unwrap().iter().map(|worker| worker["generation"].as_u64().unwrap()).sum()
}

/// The vector that `fake_worker.py` makes up for a text of single letters, normalized as the gateway does it.
pub fn fake_vector(text: &str) -> Vec<f32> {
    normalized(&raw_fake_vector(text, 8))
}

/// The vector as the worker sends it.
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "the numbers are small")]
pub fn raw_fake_vector(text: &str, dimension: u64) -> Vec<f32> {
    let letters = text.split(' ').map(|letter| u32::from(letter.as_bytes()[0] - b'a') + 3);
    let ids = std::iter::once(1).chain(letters).chain(std::iter::once(2));
    let seed = u64::from(crc32(ids.flat_map(u32::to_le_bytes)));
    (0..dimension)
        .map(|j| (((seed * (2 * j + 1)) % 2003) as f64 - 1001.5) / 1001.0)
        .map(|n| n as f32)
        .collect()
}

#[expect(clippy::cast_possible_truncation, reason = "the quotient is at most 1")]
pub fn normalized(raw: &[f32]) -> Vec<f32> {
    let length = raw.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    raw.iter().map(|number| (f64::from(*number) / length) as f32).collect()
}

/// The checksum of `zlib.crc32`.
fn crc32(bytes: impl Iterator<Item = u8>) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1));
    !bytes.fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(byte), step))
}

/// Runs a command that must end on its own; returns its exit code, its standard error, and how long it took.
pub fn run_to_end(mut command: Command) -> (i32, String, Duration) {
    let started = Instant::now();
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it does not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let took = started.elapsed();
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap(), took)
}

/// The golden texts, their token counts, and their reference vectors.
pub fn golden() -> Vec<(String, u64, Vec<f32>)> {
    let folder = golden_folder();
    let texts: Value = serde_json::from_slice(&std::fs::read(folder.join("minilm.json")).unwrap()).unwrap();
    let texts = texts.as_array().unwrap();
    let case = |(text, vector): (&Value, Vec<f32>)| {
        (text["text"].as_str().unwrap().to_owned(), text["token_count"].as_u64().unwrap(), vector)
    };
    texts.iter().zip(read_vectors(&folder.join("minilm.npy"), texts.len())).map(case).collect()
}

/// Where golden texts, vectors and small checkpoints are.
pub fn golden_folder() -> PathBuf {
    checkout().join("sidecar-py/tests/golden")
}

/// The vectors of a file in numpy's format: as many as there are texts.
pub fn read_vectors(file: &Path, texts: usize) -> Vec<Vec<f32>> {
    let npy = std::fs::read(file).unwrap();
    // Format of .npy, version 1: ten bytes, the length of a header, the header, then the numbers.
    let header_bytes = usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    let numbers: Vec<f32> =
        npy[10 + header_bytes..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    numbers.chunks(numbers.len() / texts).map(<[f32]>::to_vec).collect()
}
