//! One ready worker's socket: batches go out, answers come in and go straight to the jobs' senders.
//!
//! [`run`] ends when the worker is lost, and says why. What the worker held then goes back to the pool.

use std::collections::VecDeque;
use std::time::Duration;

use akidb_protocol::{Embed, Failed, GatewayCodec, GatewayMessage, ProtocolError, Vectors, WorkerMessage};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::codec::{Encoder, Framed, FramedParts, FramedRead};
use tokio_util::sync::CancellationToken;

use super::{Assignment, Membership, Pool};
use crate::error::EmbedError;
use crate::job::Job;

/// Times that a worker's silence is looked at before it is given up.
const TICKS_PER_TIMEOUT: u32 = 6;

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The worker closed its socket: it has ended or is about to.
    Closed,
    /// The worker sent something that it must not send.
    Protocol(ProtocolFault),
    /// The worker gave no sign of life for this long.
    Silent(Duration),
    /// The gateway stops.
    Stopped,
}

/// What was wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolFault {
    #[error("{0}")]
    Frame(#[from] ProtocolError),
    #[error("a `{0}` message is not expected from a ready worker")]
    Unexpected(&'static str),
    #[error("batch {0} is not in flight")]
    UnknownBatch(u64),
    #[error(
        "{count} vectors of {dimension} numbers came for {expected_count} texts and {expected_dimension} numbers"
    )]
    WrongShape { count: u32, dimension: u32, expected_count: usize, expected_dimension: usize },
}

/// What a connection needs to know.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Worker's number, for the log.
    pub(crate) worker: usize,
    /// Length of every vector.
    pub(crate) dimension: usize,
    /// Silence after which the worker is given up.
    pub(crate) heartbeat_timeout: Duration,
}

/// A batch at the worker.
struct InFlight {
    batch_id: u64,
    begun: bool,
    sent: Instant,
    assignment: Assignment,
}

/// What ended, and how much was done.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Why the connection ended.
    pub(crate) end: End,
    /// Batches answered.
    pub(crate) batches_answered: u64,
}

/// Serves the worker until it is lost or `stop` is cancelled.
pub(crate) async fn run(
    socket: Framed<UnixStream, GatewayCodec>,
    settings: Settings,
    membership: Membership,
    stop: CancellationToken,
) -> Outcome {
    let Membership { mut assignments, seat } = membership;
    let parts: FramedParts<UnixStream, GatewayCodec> = socket.into_parts();
    let (read_half, write_half) = parts.io.into_split();
    let mut frames = FramedRead::new(read_half, parts.codec);
    *frames.read_buffer_mut() = parts.read_buf;
    let writer = Writer::start(write_half);
    let mut connection = Connection {
        settings,
        pool: seat.pool(),
        in_flight: VecDeque::new(),
        next_batch_id: 1,
        batches_answered: 0,
    };
    // Silence is counted in ticks, so that the time in which the gateway itself was suspended does not count.
    let mut silent_ticks = 0;
    let mut check = tokio::time::interval(connection.settings.heartbeat_timeout / TICKS_PER_TIMEOUT);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);

    let end = loop {
        tokio::select! {
            frame = frames.next() => {
                silent_ticks = 0;
                match frame {
                    None => break End::Closed,
                    Some(Err(ProtocolError::Io(_))) => break End::Closed,
                    Some(Err(error)) => break End::Protocol(error.into()),
                    Some(Ok(message)) => {
                        if let Err(fault) = connection.receive(message) {
                            break End::Protocol(fault);
                        }
                    }
                }
            }
            Some(assignment) = assignments.recv() => writer.write(connection.send(assignment)),
            _ = check.tick() => {
                silent_ticks += 1;
                if silent_ticks > TICKS_PER_TIMEOUT {
                    break End::Silent(connection.settings.heartbeat_timeout);
                }
            }
            () = stop.cancelled() => break End::Stopped,
        }
    };
    let batches_answered = connection.batches_answered;
    // First out of the pool, so that nothing the worker held is offered to it again.
    drop(seat);
    connection.give_back(assignments);
    Outcome { end, batches_answered }
}

struct Connection {
    settings: Settings,
    pool: Pool,
    in_flight: VecDeque<InFlight>,
    next_batch_id: u64,
    batches_answered: u64,
}

impl Connection {
    /// Notes a batch as in flight and returns its frame.
    fn send(&mut self, assignment: Assignment) -> Bytes {
        let batch_id = self.next_batch_id;
        self.next_batch_id += 1;
        let pooling =
            assignment.jobs.first().map(|job| job.pooling).expect("a batch has a job: this is a bug");
        let texts = assignment.jobs.iter().map(|job| job.token_ids.as_slice());
        let embed = Embed::new(batch_id, pooling, assignment.threads, texts);
        let mut frame = BytesMut::new();
        GatewayCodec::default()
            .encode(GatewayMessage::Embed(embed), &mut frame)
            .expect("a batch is far smaller than the longest frame: this is a bug");
        self.in_flight.push_back(InFlight { batch_id, begun: false, sent: Instant::now(), assignment });
        frame.freeze()
    }

    fn receive(&mut self, message: WorkerMessage) -> Result<(), ProtocolFault> {
        match message {
            WorkerMessage::Heartbeat(_) => {}
            WorkerMessage::Begun(begun) => {
                let batch = self.in_flight.iter_mut().find(|batch| batch.batch_id == begun.batch_id);
                batch.ok_or(ProtocolFault::UnknownBatch(begun.batch_id))?.begun = true;
            }
            WorkerMessage::Vectors(vectors) => self.deliver(&vectors)?,
            WorkerMessage::Failed(failed) => self.fail(&failed)?,
            WorkerMessage::Hello(_) => return Err(ProtocolFault::Unexpected("hello")),
            WorkerMessage::Ready(_) => return Err(ProtocolFault::Unexpected("ready")),
            WorkerMessage::Fatal(_) => return Err(ProtocolFault::Unexpected("fatal")),
        }
        Ok(())
    }

    fn take(&mut self, batch_id: u64) -> Result<InFlight, ProtocolFault> {
        let position = self.in_flight.iter().position(|batch| batch.batch_id == batch_id);
        let batch = position.and_then(|position| self.in_flight.remove(position));
        batch.ok_or(ProtocolFault::UnknownBatch(batch_id))
    }

    /// Gives every job its vector.
    fn deliver(&mut self, message: &Vectors) -> Result<(), ProtocolFault> {
        let expected_dimension = self.settings.dimension;
        let Vectors { batch_id, count, dimension, compute_seconds, ref vectors } = *message;
        let batch = self.in_flight.iter().find(|batch| batch.batch_id == batch_id);
        let expected_count = batch.ok_or(ProtocolFault::UnknownBatch(batch_id))?.assignment.jobs.len();
        if count as usize != expected_count || dimension as usize != expected_dimension {
            return Err(ProtocolFault::WrongShape { count, dimension, expected_count, expected_dimension });
        }
        let InFlight { assignment: Assignment { jobs, permit, .. }, sent, .. } = self.take(batch_id)?;
        drop(permit);
        self.pool.batch_took(sent.elapsed().as_secs_f64(), compute_seconds);
        self.batches_answered += 1;
        for (position, job) in jobs.into_iter().enumerate() {
            let start = position * expected_dimension * 4;
            let vector = vectors.slice(start..start + expected_dimension * 4);
            let index = job.index();
            job.answer(if is_usable(&vector) {
                Ok(vector)
            } else {
                Err(EmbedError::BadWorkerOutput { index })
            });
        }
        Ok(())
    }

    /// The model raised an error: the texts of the batch run again one by one, so that only the culprit fails.
    fn fail(&mut self, failed: &Failed) -> Result<(), ProtocolFault> {
        let Assignment { mut jobs, permit, .. } = self.take(failed.batch_id)?.assignment;
        drop(permit);
        tracing::warn!(
            worker = self.settings.worker,
            code = failed.code,
            reason = failed.message,
            texts = jobs.len(),
            "batch failed"
        );
        if jobs.len() > 1 {
            self.pool.rerun_singly(jobs);
        } else if let Some(job) = jobs.pop() {
            let index = job.index();
            job.answer(Err(match failed.code.as_str() {
                "bad_output" => EmbedError::BadWorkerOutput { index },
                _ => EmbedError::InferenceFailed { index },
            }));
        }
        Ok(())
    }

    /// Returns everything the worker held to the pool.
    fn give_back(self, mut assignments: mpsc::UnboundedReceiver<Assignment>) {
        assignments.close();
        let mut not_begun = Vec::new();
        let mut begun = Vec::new();
        for batch in self.in_flight {
            let jobs: Vec<Job> = batch.assignment.jobs;
            if batch.begun { begun.push(jobs) } else { not_begun.push(jobs) }
        }
        while let Ok(assignment) = assignments.try_recv() {
            not_begun.push(assignment.jobs);
        }
        self.pool.take_back(not_begun, begun);
    }
}

/// Whether a raw vector can be right: every number finite, and not all of them zero.
fn is_usable(vector: &[u8]) -> bool {
    let mut any_non_zero = false;
    for bytes in vector.as_chunks::<4>().0 {
        let number = f32::from_le_bytes(*bytes);
        if !number.is_finite() {
            return false;
        }
        any_non_zero |= number != 0.0;
    }
    any_non_zero
}

/// Writes frames without holding up the reading of answers.
struct Writer {
    frames: mpsc::UnboundedSender<Bytes>,
    task: AbortHandle,
}

impl Writer {
    fn start(mut socket: OwnedWriteHalf) -> Self {
        let (frames, mut receiver) = mpsc::unbounded_channel::<Bytes>();
        let task = tokio::spawn(async move {
            while let Some(frame) = receiver.recv().await {
                // A worker that is gone is noticed by the reading side.
                if socket.write_all(&frame).await.is_err() {
                    return;
                }
            }
        });
        Self { frames, task: task.abort_handle() }
    }

    fn write(&self, frame: Bytes) {
        let _ = self.frames.send(frame);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_that_cannot_be_right_are_recognized() {
        let bytes =
            |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        assert!(is_usable(&bytes(&[0.0, -1.5])));
        assert!(!is_usable(&bytes(&[0.0, -0.0])));
        assert!(!is_usable(&bytes(&[1.0, f32::NAN])));
        assert!(!is_usable(&bytes(&[f32::NEG_INFINITY, 1.0])));
    }
}
