//! The library's front door: [`EmbeddingManager`] turns texts into vectors. HTTP is a thin layer over it.
//!
//! * `request`: what is asked for, and what is answered.
//! * `offer`: what the model does where a request does not choose, and what it cannot do.
//! * `vector`: from a worker's bytes to the vector asked for.
//! * `workers`: what is told of the workers.

mod offer;
mod request;
mod vector;
mod workers;

pub use crate::tokenizer::TruncationDirection;
pub use request::{EmbedRequest, Embeddings, Prompt};
pub use workers::WorkerInfo;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use akidb_protocol::Pooling;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{EmbedError, StartError, shorten};
use crate::heart::Heart;
use crate::job::{Job, Place, QueueEntry, Reply, Share};
use crate::machine;
use crate::metrics::{Metrics, Phase, Status};
use crate::model::{self, Model};
use crate::pool::{self, Expectations, Pool};
use crate::scheduler::admission::{RequestSize, TimeLimit};
use crate::scheduler::{self, Scheduler};
use crate::sidecar::Sidecar;
use crate::sidecar::process::Spawner;
use crate::supervisor::{self, Supervisor};
use crate::tokenizer::{Family, Needs, Tokenizer, Tokens};
use offer::{Offer, Plan};
use vector::{VectorForm, collect};

/// Upper bound of `Retry-After`, also when no worker is expected: an operator may fix it.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// What a manager needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which model to serve.
    pub model: model::Config,
    /// How batches are formed.
    pub scheduler: scheduler::Config,
    /// What a worker may hold.
    pub pool: pool::Config,
    /// How workers are started and watched.
    pub supervisor: supervisor::Config,
    /// Python interpreter with `akidb_sidecar`; `None` looks for one.
    pub python: Option<PathBuf>,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// Most texts in one request.
    pub max_texts: usize,
    /// Whether preparing a model may draw progress bars on standard error.
    pub show_progress: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: model::Config::default(),
            scheduler: scheduler::Config::default(),
            pool: pool::Config::default(),
            supervisor: supervisor::Config::default(),
            python: None,
            request_timeout: Duration::from_secs(30),
            max_texts: 2048,
            show_progress: false,
        }
    }
}

/// What is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Name that requests and answers use.
    pub model: String,
    /// Length of every vector.
    pub dimension: usize,
    /// Longest text in tokens; a longer one is cut.
    pub max_tokens: usize,
}

/// Owns the workers and everything between them and a caller.
#[derive(Debug)]
pub struct EmbeddingManager {
    request_timeout: Duration,
    max_texts: usize,
    info: ModelInfo,
    offer: Offer,
    tokenizer: Tokenizer,
    scheduler: Scheduler,
    pool: Pool,
    supervisor: Supervisor,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
    abandoned: CancellationToken,
    admitted: TaskTracker,
}

impl EmbeddingManager {
    /// Resolves the model and starts the workers. It returns before they are ready; a request waits for them.
    ///
    /// # Errors
    ///
    /// No Python environment, a model that cannot be had, or one whose files are wrong.
    pub async fn new(config: Config) -> Result<Self, StartError> {
        Self::with_parts(config, Arc::new(Metrics::new()), &Heart::default()).await
    }

    /// The same, with parts that the whole process shares; `heart` watches the loops that must not stand still.
    pub(crate) async fn with_parts(
        config: Config,
        metrics: Arc<Metrics>,
        heart: &Heart,
    ) -> Result<Self, StartError> {
        let sidecar = Sidecar::find(config.python.as_deref())?;
        let model = Model::resolve(&config.model, &sidecar, config.show_progress).await?;
        let needs = Needs {
            max_tokens: model.max_tokens,
            end_token: model.end_token,
            vocabulary: model.vocabulary,
            lower_case: model.lower_case,
            family: Family {
                model_type: model.model_type.clone(),
                tokenizer_class: model.tokenizer_class.clone(),
            },
        };
        let path = model.path.clone();
        let tokenizer =
            tokio::task::spawn_blocking(move || Tokenizer::load(&path, needs, machine::cores())).await;
        let tokenizer = tokenizer
            .unwrap_or_else(|panic| Err(panic.to_string()))
            .map_err(|reason| StartError::Model { model: model.served_name.clone(), reason })?;
        metrics.serves(&model.served_name);
        let (cores, compute) = (machine::cores(), config.model.compute);
        let on_unified_gpu = compute.is_on_unified_gpu();
        let workers = config
            .supervisor
            .workers
            .unwrap_or_else(|| machine::default_workers(model.weights_bytes, on_unified_gpu));
        let expectations = Expectations {
            max_batch_tokens: config.scheduler.max_batch_tokens,
            request_timeout: config.request_timeout,
            guess: machine::guess_tokens_per_second(model.weights_bytes, on_unified_gpu),
        };
        let (pool, replacements) = Pool::new(config.pool, expectations, cores, Arc::clone(&metrics));
        let scheduler = Scheduler::start(config.scheduler, pool.clone(), heart);
        let heartbeat_interval = config.supervisor.heartbeat_interval();
        let arguments = workers::arguments(&model, heartbeat_interval, compute);
        let spawner = Spawner::new(sidecar, arguments);
        let supervisor = Supervisor::start(
            &config.supervisor,
            workers,
            (model.dimension, model.max_tokens),
            &spawner,
            (&pool, replacements),
            (&metrics, heart),
        );
        Ok(Self {
            request_timeout: config.request_timeout,
            max_texts: config.max_texts,
            offer: Offer::of(&model, tokenizer.truncation()),
            info: ModelInfo {
                model: model.served_name,
                dimension: model.dimension,
                max_tokens: model.max_tokens,
            },
            tokenizer,
            scheduler,
            pool,
            supervisor,
            metrics,
            draining: CancellationToken::new(),
            abandoned: CancellationToken::new(),
            admitted: TaskTracker::new(),
        })
    }

    /// Embeds texts as the model was trained to: one vector per text.
    ///
    /// # Errors
    ///
    /// See [`EmbedError`].
    pub async fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        Ok(self.embed_request(EmbedRequest::new(texts)).await?.vectors)
    }

    /// Embeds the texts of one request.
    ///
    /// # Errors
    ///
    /// See [`EmbedError`].
    pub async fn embed_request(&self, request: EmbedRequest) -> Result<Embeddings, EmbedError> {
        self.embed_and_note(request, || ()).await
    }

    /// Does the same, and calls `texts_dropped` once only the tokens of the texts are left.
    pub(crate) async fn embed_and_note(
        &self,
        request: EmbedRequest,
        texts_dropped: impl FnOnce() + Send,
    ) -> Result<Embeddings, EmbedError> {
        let arrived = Instant::now();
        let _admitted = self.admitted.token();
        let client = request::ClientWatch { metrics: &self.metrics, is_there: true };
        let result = if self.is_draining() {
            Err(EmbedError::Draining)
        } else {
            self.embed_admitted(request, arrived, texts_dropped).await
        };
        client.got_answer();
        match &result {
            Ok(embeddings) => {
                self.metrics.request_answered(Status::Success);
                self.metrics.latency_seconds.observe(embeddings.duration.as_secs_f64());
                self.metrics.tokens.inc_by(embeddings.total_tokens);
                self.metrics.truncated_texts.inc_by(embeddings.truncated as u64);
            }
            Err(error) => {
                self.metrics.request_answered(Status::Error);
                if matches!(
                    error,
                    EmbedError::Overloaded { .. }
                        | EmbedError::NoWorker { .. }
                        | EmbedError::DeadlineTooShort { .. }
                ) {
                    self.metrics.rejection_seconds.observe(arrived.elapsed().as_secs_f64());
                }
            }
        }
        result
    }

    async fn embed_admitted(
        &self,
        request: EmbedRequest,
        arrived: Instant,
        texts_dropped: impl FnOnce() + Send,
    ) -> Result<Embeddings, EmbedError> {
        self.check(&request)?;
        let Plan { pooling, reading, form } = self.offer.plan(&request)?;
        self.metrics.batch_size.observe(request.texts.len() as f64);
        let timeout = request.timeout.map_or(self.request_timeout, |own| own.min(self.request_timeout));
        let deadline = arrived + timeout;
        let started = Instant::now();
        if !self.is_ready() {
            let due = self.supervisor.time_until_ready();
            if due > timeout {
                return Err(EmbedError::NoWorker { retry_after: due.min(LONGEST_RETRY_AFTER) });
            }
        }
        // Every text has a token: what is too much even so needs no tokenizing.
        let least = RequestSize { tokens: request.texts.len(), longest: 1 };
        self.scheduler.check(least, self.time_limit(timeout, deadline))?;
        let tokens = self.tokenizer.tokenize(request.texts, reading, deadline).await?;
        texts_dropped();
        self.metrics.phase_took(Phase::Tokenize, started.elapsed().as_secs_f64());
        if !request.truncate {
            self.check_lengths(&tokens)?;
        }
        let total_tokens = tokens.iter().map(|tokens| tokens.ids.len() as u64).sum();
        let truncated = tokens.iter().filter(|tokens| tokens.truncated).count();
        let vectors = self.compute(tokens, pooling, form, timeout, deadline).await?;
        let dimension = form.dimension;
        Ok(Embeddings { vectors, dimension, total_tokens, truncated, duration: arrived.elapsed() })
    }

    fn check(&self, request: &EmbedRequest) -> Result<(), EmbedError> {
        if let Some(requested) = request.model.as_ref().filter(|model| **model != self.info.model) {
            return Err(EmbedError::ModelNotServed {
                requested: shorten(requested),
                served: self.info.model.clone(),
            });
        }
        if request.texts.is_empty() {
            return Err(EmbedError::NoTexts);
        }
        if request.texts.len() > self.max_texts {
            return Err(EmbedError::TooManyTexts { limit: self.max_texts });
        }
        match request.texts.iter().position(String::is_empty) {
            Some(index) => Err(EmbedError::EmptyText { index }),
            None => Ok(()),
        }
    }

    /// Refuses the first text that is longer than the model allows.
    fn check_lengths(&self, tokens: &[Tokens]) -> Result<(), EmbedError> {
        match tokens.iter().enumerate().find(|(_, tokens)| tokens.truncated) {
            Some((index, Tokens { text_tokens, is_counted, .. })) => Err(EmbedError::TextTooLong {
                index,
                tokens: *text_tokens,
                is_exact: *is_counted,
                limit: self.info.max_tokens,
            }),
            None => Ok(()),
        }
    }

    /// Time of a request, and in which of it workers can compute: while none is ready, less the wait for the first one.
    fn time_limit(&self, timeout: Duration, deadline: Instant) -> TimeLimit {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = if self.is_ready() { Duration::ZERO } else { self.supervisor.time_until_ready() };
        TimeLimit { whole: timeout, left: left.saturating_sub(wait) }
    }

    /// Submits one job per text and puts the answers in order.
    async fn compute(
        &self,
        tokens: Vec<Tokens>,
        pooling: Pooling,
        form: VectorForm,
        timeout: Duration,
        deadline: Instant,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        if let Some(index) = tokens.iter().position(|tokens| self.pool.is_poison(&tokens.ids, pooling)) {
            return Err(EmbedError::PoisonInput { index });
        }
        let (sender, mut answers) = mpsc::unbounded_channel();
        let worker_lost = Arc::new(AtomicBool::new(false));
        let count = tokens.len();
        let lengths = tokens.iter().map(|tokens| tokens.ids.len());
        let size = RequestSize { tokens: lengths.clone().sum(), longest: lengths.max().unwrap_or_default() };
        let mut waiting = tokens.into_iter().enumerate();
        let job = |(index, tokens): (usize, Tokens), entry: &Arc<QueueEntry>, share: &mut Share| Job {
            place: Some(Place::new(entry, tokens.ids.len(), deadline)),
            share: share.split(tokens.ids.len()),
            token_ids: tokens.ids,
            pooling,
            deadline,
            reply: Reply { index, sender: sender.clone(), worker_lost: Arc::clone(&worker_lost) },
            lost_workers: 0,
            is_suspect: false,
            doubt: None,
            overtaken: 0,
        };
        let submitted =
            self.scheduler.submit(size, self.time_limit(timeout, deadline), |entry, mut share| {
                waiting.by_ref().map(|text| job(text, entry, &mut share)).collect()
            });
        if let Err(refused) = submitted {
            self.scheduler.probe(|entry, mut share, tokens| {
                let mut left = tokens;
                let some = waiting.map_while(|text| {
                    let is_enough = left == 0;
                    left = left.saturating_sub(text.1.ids.len());
                    (!is_enough).then(|| job(text, entry, &mut share))
                });
                some.collect()
            });
            drop(sender);
            // Else nobody would wait, and they would be dropped.
            tokio::spawn(async move { while answers.recv().await.is_some() {} });
            return Err(refused);
        }
        drop(sender);
        let collected = tokio::select! {
            biased;
            collected = tokio::time::timeout_at(deadline, collect(answers, count, form)) => collected,
            due = self.supervisor.none_due_before(deadline) => {
                let retry_after = due.map_or(LONGEST_RETRY_AFTER, |due| due - Instant::now());
                let was_lost = worker_lost.load(Ordering::Relaxed);
                return Err(if was_lost { EmbedError::WorkerLost } else { EmbedError::NoWorker { retry_after } });
            }
            () = self.abandoned.cancelled() => {
                return Err(if self.is_ready() { EmbedError::Draining } else { EmbedError::no_worker_in_time() });
            }
        };
        match collected {
            Ok(Some(vectors)) => vectors,
            // Jobs are dropped unanswered only when they are abandoned.
            Ok(None) if Instant::now() < deadline => Err(EmbedError::Internal),
            _ if worker_lost.load(Ordering::Relaxed) => Err(EmbedError::WorkerLost),
            _ if !self.is_ready() => Err(EmbedError::no_worker_in_time()),
            _ => Err(EmbedError::DeadlineExceeded),
        }
    }

    /// What is served.
    #[must_use]
    pub fn model_info(&self) -> &ModelInfo {
        &self.info
    }

    /// What is known of each worker now.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerInfo> {
        workers::describe(self.supervisor.statuses(), &self.pool)
    }

    /// Whether a worker can take a batch now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.pool.ready_workers() > 0
    }

    /// Whether [`Self::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits until one worker is ready.
    ///
    /// # Errors
    ///
    /// When a worker says that it can never become ready.
    pub async fn ready(&self) -> Result<(), StartError> {
        self.supervisor.ready().await.map_err(StartError::WorkerFatal)
    }

    /// Waits until a worker says that it can never become ready, when none ever was.
    pub async fn failed(&self) -> StartError {
        StartError::WorkerFatal(self.supervisor.failed().await)
    }

    /// Refuses new requests from now on.
    pub fn drain(&self) {
        self.draining.cancel();
        self.admitted.close();
    }

    /// Waits until [`Self::drain`] is called.
    pub(crate) async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Answers every admitted request with an error at once.
    pub(crate) fn abandon(&self) {
        self.abandoned.cancel();
    }

    /// After [`Self::drain`], waits until every admitted request is answered.
    pub async fn drained(&self) {
        self.admitted.wait().await;
    }

    /// Replaces every worker, one at a time, each only once its successor is ready.
    pub fn reload(&self) {
        self.supervisor.reload();
    }

    /// Why no worker can take a batch, for an operator; `None` when one can.
    #[must_use]
    pub fn not_ready_reason(&self) -> Option<String> {
        (!self.is_ready()).then(|| workers::why_none_is_ready(self.supervisor.statuses()))
    }

    /// Ends the workers and waits until their processes are gone.
    pub async fn stop(&self) {
        self.drain();
        self.supervisor.stop().await;
    }

    /// All metrics in the `OpenMetrics` text form.
    #[must_use]
    pub fn metrics_text(&self) -> String {
        for worker in self.workers() {
            self.metrics.worker_uses(worker.id, worker.rss_bytes);
        }
        self.metrics.encode()
    }

    /// Most texts in one request.
    pub(crate) fn max_texts(&self) -> usize {
        self.max_texts
    }
}
