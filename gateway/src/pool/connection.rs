//! One ready worker's socket: batches go out, answers come in and go straight to the jobs' senders.
//!
//! [`run`] ends when the worker is lost or has been relieved, and says why. Batches that it had not begun go back to the
//! pool at once; what it was computing is handed to the caller, who learns how the process ended. When it had begun none,
//! that is the first frame that it was sent.
//!
//! Time is counted in ticks, so that the time in which the gateway itself was suspended does not count.
//!
//! * `end`: how a connection ends.
//! * `failure`: texts that raise an error, and the question whether the worker can still compute any.
//! * `in_flight`: what a worker holds.

mod end;
mod failure;
mod in_flight;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use akidb_protocol::{
    DEVICE_LOST, Embed, GatewayCodec, GatewayMessage, ProtocolError, Vectors, WorkerMessage,
};
use bytes::BytesMut;
use futures_util::{FutureExt, StreamExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::codec::{Encoder, Framed, FramedParts, FramedRead};
use tokio_util::sync::CancellationToken;

use super::writer::Writer;
use super::{Assignment, Manner, Membership, Pool, Seat};
use crate::error::EmbedError;
use crate::job::{Doubt, Job};
use crate::machine::Footprint;
use crate::metrics::RestartReason;
pub(crate) use end::{End, ProtocolFault};
use in_flight::{InFlight, Work};

/// Times that the shortest of the time-outs is looked at before it is over.
const TICKS_PER_TIMEOUT: u32 = 4;
/// Part of its time without a heartbeat or progress after which a worker is given no more batches.
const DOUBT: f64 = 0.5;
/// A batch may take this many times as long as batches of its size took recently...
const SLOWEST: u32 = 10;
/// ...but no more than this many times the least progress deadline.
const LONGEST_PATIENCE: u32 = 20;
/// Batches in a row without one vector that can be right, after which a worker is replaced.
const MOST_BAD_BATCHES: u32 = 10;
/// Squared lengths of a vector that can be right.
const SANE_SQUARED_NORMS: std::ops::Range<f64> = 1e-12..1e12;

/// What a connection needs to know.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Worker's number.
    pub(crate) worker: usize,
    /// Length of every vector.
    pub(crate) dimension: usize,
    /// Length of the longest text, in tokens.
    pub(crate) max_tokens: usize,
    /// Silence after which the worker is given up.
    pub(crate) heartbeat_timeout: Duration,
    /// Time without progress after which the worker is given up, at least; more for a large batch.
    pub(crate) progress_timeout: Duration,
    /// Time without a byte inside a frame after which the worker is given up.
    pub(crate) stall_timeout: Duration,
    /// Batches after which the worker is replaced.
    pub(crate) max_batches: Option<u64>,
    /// Where its heartbeats' memory goes.
    pub(crate) footprint: Footprint,
}

/// What ended, and how much was done.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Why the connection ended.
    pub(crate) end: End,
    /// Batches answered.
    pub(crate) batches_answered: u64,
    /// Batches that the worker held.
    pub(crate) in_flight: usize,
    /// Texts that it was computing.
    pub(crate) computing: Vec<Job>,
}

/// Serves the worker until it is lost, or `stop` is cancelled, or all is answered after `relieve` was cancelled.
pub(crate) async fn run(
    socket: Framed<UnixStream, GatewayCodec>,
    settings: Settings,
    membership: Membership,
    relieve: CancellationToken,
    stop: CancellationToken,
) -> Outcome {
    let Membership { mut assignments, seat } = membership;
    let parts: FramedParts<UnixStream, GatewayCodec> = socket.into_parts();
    let (read_half, write_half) = parts.io.into_split();
    let mut frames = FramedRead::new(read_half, parts.codec);
    *frames.read_buffer_mut() = parts.read_buf;
    let shortest = settings.heartbeat_timeout.min(settings.progress_timeout).min(settings.stall_timeout);
    let mut check = tokio::time::interval((shortest / TICKS_PER_TIMEOUT).max(Duration::from_millis(1)));
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = Connection {
        watch: Watch { tick: check.period(), ..Watch::default() },
        pool: seat.pool(),
        seat: Some(seat),
        settings,
        writer: Writer::start(write_half),
        in_flight: VecDeque::new(),
        failed_alone: Vec::new(),
        next_batch_id: 1,
        batches_answered: 0,
        answered: None,
        failures_in_a_row: 0,
        bad_batches_in_a_row: 0,
    };

    let mut unsent = None;
    let end = loop {
        let is_relieved = connection.seat.is_none();
        if is_relieved && connection.in_flight.is_empty() && assignments.is_closed() && assignments.is_empty()
        {
            break End::Relieved;
        }
        tokio::select! {
            frame = frames.next() => {
                if let Some(end) = connection.take_frame(frame, &frames) {
                    break end;
                }
            }
            Some(assignment) = assignments.recv() => {
                // A worker that has ended already is sent nothing: that would count against the texts.
                if let Some(end) = connection.take_waiting_frames(&mut frames) {
                    unsent = Some(assignment);
                    break end;
                }
                connection.send(assignment);
            }
            _ = check.tick() => {
                if let Some(end) = connection.look(&frames) {
                    break end;
                }
            }
            () = relieve.cancelled(), if !is_relieved => {
                connection.seat = None;
                assignments.close();
            }
            () = stop.cancelled() => break End::Stopped,
        }
    };
    // First out of the pool, so that nothing the worker held is offered to it again.
    drop(connection.seat.take());
    connection.finish(end, unsent, assignments)
}

/// What was last seen of the worker, in ticks since.
#[derive(Default)]
struct Watch {
    tick: Duration,
    /// Since the last byte.
    silent: u32,
    /// Since the last progress of the first batch in flight.
    idle: u32,
    /// Bytes of an unfinished frame at the last tick.
    unfinished_bytes: usize,
    /// What the worker last said of its progress.
    steps_done: u64,
}

impl Watch {
    /// Time that this many ticks show to have passed: the first one may have come at once.
    fn at_least(&self, ticks: u32) -> Duration {
        self.tick * ticks.saturating_sub(1)
    }
}

struct Connection {
    settings: Settings,
    watch: Watch,
    pool: Pool,
    /// `None` once it is relieved.
    seat: Option<Seat>,
    writer: Writer,
    in_flight: VecDeque<InFlight>,
    /// Texts that raised an error, each alone. While there are any, the warm-up text is in flight.
    failed_alone: Vec<Assignment>,
    next_batch_id: u64,
    batches_answered: u64,
    /// When the last batch was.
    answered: Option<Instant>,
    failures_in_a_row: u32,
    bad_batches_in_a_row: u32,
}

impl Connection {
    /// Sends a batch of texts.
    fn send(&mut self, assignment: Assignment) {
        let batch_id = self.next_batch_id;
        let pooling =
            assignment.jobs.first().map(|job| job.pooling).expect("a batch has a job: this is a bug");
        let texts = assignment.jobs.iter().map(|job| job.token_ids.as_slice());
        let embed = Embed::new(batch_id, pooling, assignment.threads, texts);
        self.send_work(embed, Work::Texts(assignment));
    }

    /// Sends a frame with the next batch id, and notes its batch as in flight.
    fn send_work(&mut self, embed: Embed, work: Work) {
        let batch_id = self.next_batch_id;
        self.next_batch_id += 1;
        let mut frame = BytesMut::new();
        GatewayCodec::default()
            .encode(GatewayMessage::Embed(embed), &mut frame)
            .expect("a batch is far smaller than the longest frame: this is a bug");
        if self.in_flight.is_empty() {
            self.watch.idle = 0;
        }
        self.in_flight.push_back(InFlight {
            batch_id,
            sent: Instant::now(),
            begun: None,
            busy: 0,
            start: None,
            work,
        });
        self.writer.write(frame.freeze());
    }

    /// Takes what the worker sent; returns how the connection ends, if it does.
    fn take_frame(
        &mut self,
        frame: Option<Result<WorkerMessage, ProtocolError>>,
        frames: &FramedRead<OwnedReadHalf, GatewayCodec>,
    ) -> Option<End> {
        let cut_bytes = frames.read_buffer().len();
        match frame {
            None | Some(Err(ProtocolError::Io(_))) if cut_bytes > 0 => {
                Some(End::Protocol(ProtocolFault::Cut(cut_bytes)))
            }
            None | Some(Err(ProtocolError::Io(_))) => Some(End::Closed),
            Some(Err(error)) => Some(End::Protocol(error.into())),
            Some(Ok(WorkerMessage::Fatal(fatal))) if fatal.code == DEVICE_LOST => {
                Some(End::DeviceLost(fatal.message))
            }
            Some(Ok(message)) => self.receive(message).err(),
        }
    }

    /// Takes what has arrived by now.
    fn take_waiting_frames(&mut self, frames: &mut FramedRead<OwnedReadHalf, GatewayCodec>) -> Option<End> {
        while let Some(frame) = frames.next().now_or_never() {
            let end = self.take_frame(frame, frames);
            if end.is_some() {
                return end;
            }
        }
        None
    }

    fn receive(&mut self, message: WorkerMessage) -> Result<(), End> {
        self.watch.silent = 0;
        match message {
            WorkerMessage::Heartbeat(heartbeat) => {
                self.settings.footprint.tell(heartbeat.memory_bytes);
                if heartbeat.steps_done != self.watch.steps_done {
                    self.watch.steps_done = heartbeat.steps_done;
                    self.watch.idle = 0;
                }
            }
            WorkerMessage::Begun(begun) => {
                let batch = self.in_flight.iter_mut().find(|batch| batch.batch_id == begun.batch_id);
                let batch = batch.ok_or(ProtocolFault::UnknownBatch(begun.batch_id))?;
                batch.begun = Some(Instant::now());
                if let (Some(seat), Work::Texts(_)) = (&self.seat, &batch.work) {
                    batch.start = Some(self.pool.batch_begins(seat.number(), batch.work.tokens()));
                }
                self.watch.idle = 0;
            }
            WorkerMessage::Vectors(vectors) => self.deliver(&vectors)?,
            WorkerMessage::Failed(failed) => self.fail(&failed)?,
            WorkerMessage::Hello(_) => return Err(ProtocolFault::Unexpected("hello").into()),
            WorkerMessage::Ready(_) => return Err(ProtocolFault::Unexpected("ready").into()),
            WorkerMessage::Fatal(_) => return Err(ProtocolFault::Unexpected("fatal").into()),
        }
        Ok(())
    }

    /// Checks heartbeats and progress once per tick.
    fn look(&mut self, frames: &FramedRead<OwnedReadHalf, GatewayCodec>) -> Option<End> {
        let Settings { heartbeat_timeout, stall_timeout, .. } = self.settings;
        let unfinished_bytes = frames.read_buffer().len();
        if unfinished_bytes != self.watch.unfinished_bytes {
            self.watch.silent = 0;
        }
        self.watch.unfinished_bytes = unfinished_bytes;
        self.watch.silent += 1;
        let silence = self.watch.at_least(self.watch.silent);
        if unfinished_bytes > 0 && silence > stall_timeout {
            return Some(End::Protocol(ProtocolFault::Stalled(stall_timeout, unfinished_bytes)));
        }
        if silence > heartbeat_timeout {
            return Some(End::Silent(heartbeat_timeout));
        }
        let mut is_doubtful = silence > heartbeat_timeout.mul_f64(DOUBT);
        for batch in self.in_flight.iter_mut().filter(|batch| batch.begun.is_some()) {
            batch.busy += 1;
        }
        if let Some(batch) = self.in_flight.front() {
            self.watch.idle += 1;
            let idle = self.watch.at_least(self.watch.idle);
            let progress_timeout = self.progress_timeout(batch.work.tokens());
            if idle > progress_timeout {
                return Some(End::NoProgress(progress_timeout));
            }
            is_doubtful |= idle > progress_timeout.mul_f64(DOUBT);
        }
        if let Some(seat) = &self.seat {
            seat.set_responsive(!is_doubtful);
        }
        None
    }

    /// How long a batch of this many tokens may go without progress.
    fn progress_timeout(&self, tokens: usize) -> Duration {
        let seat = self.seat.as_ref().map(Seat::number);
        let usual = seat.map_or(Duration::ZERO, |seat| self.pool.usual_time(seat, tokens));
        let scaled = usual.saturating_mul(SLOWEST);
        let least = self.settings.progress_timeout;
        scaled.clamp(least, least.saturating_mul(LONGEST_PATIENCE))
    }

    fn take(&mut self, batch_id: u64) -> Result<InFlight, ProtocolFault> {
        let position = self.in_flight.iter().position(|batch| batch.batch_id == batch_id);
        let batch = position.and_then(|position| self.in_flight.remove(position));
        self.watch.idle = 0;
        batch.ok_or(ProtocolFault::UnknownBatch(batch_id))
    }

    /// Gives every job its vector.
    fn deliver(&mut self, message: &Vectors) -> Result<(), End> {
        let expected_dimension = self.settings.dimension;
        let Vectors { batch_id, count, dimension, compute_seconds, ref vectors } = *message;
        let batch = self.in_flight.iter().find(|batch| batch.batch_id == batch_id);
        let expected_count = batch.ok_or(ProtocolFault::UnknownBatch(batch_id))?.work.texts();
        if count as usize != expected_count || dimension as usize != expected_dimension {
            let fault = ProtocolFault::WrongShape { count, dimension, expected_count, expected_dimension };
            return Err(fault.into());
        }
        let batch = self.take(batch_id)?;
        self.measure(&batch, compute_seconds);
        let Some(Assignment { jobs, permit, .. }) = batch.work.assignment() else {
            return self.warmed_up(vectors);
        };
        drop(permit);
        self.batches_answered += 1;
        self.failures_in_a_row = 0;
        if self.settings.max_batches.is_some_and(|most| self.batches_answered >= most) {
            self.ask_for_a_successor(RestartReason::MaxBatches);
        }
        let mut unusable = Vec::new();
        let mut any_usable = false;
        for (position, job) in jobs.into_iter().enumerate() {
            let start = position * expected_dimension * 4;
            let vector = vectors.slice(start..start + expected_dimension * 4);
            if is_usable(&vector) {
                any_usable = true;
                if let Some(suspect) = job.doubt.as_ref().and_then(|doubt| doubt.was_right_elsewhere()) {
                    self.pool.replace(suspect, RestartReason::BadOutput);
                }
                self.pool.acquit(&job);
                job.answer(Ok(vector));
            } else {
                unusable.push(job);
            }
        }
        if any_usable {
            self.computes();
        }
        self.bad_batches_in_a_row = if any_usable { 0 } else { self.bad_batches_in_a_row + 1 };
        self.doubt(unusable);
        Ok(())
    }

    /// Notes how long a batch kept its worker: from the answer before it, or from when it was sent if that was later, because
    /// what passes between two batches is lost, too. While the gateway does not get the processor, a batch may seem to take no
    /// time at all: it took no less than the worker says.
    fn measure(&mut self, batch: &InFlight, compute_seconds: f64) {
        if matches!(batch.work, Work::Texts(_)) {
            self.pool.batch_was_away(batch.sent.elapsed(), compute_seconds);
        }
        if let (Some(seat), Some(begun), Some(start)) = (&self.seat, batch.begun, batch.start) {
            let free = self.answered.map_or(batch.sent, |answered| answered.max(batch.sent));
            let seen = begun.elapsed().min(self.watch.tick * (batch.busy + 1))
                + begun.saturating_duration_since(free).min(self.watch.tick);
            let said = Duration::try_from_secs_f64(compute_seconds).unwrap_or_default();
            self.pool.batch_took(seat.number(), batch.work.tokens(), seen.max(said), start);
        }
        self.answered = Some(Instant::now());
    }

    /// Runs texts again whose vectors cannot be right, once.
    fn doubt(&mut self, jobs: Vec<Job>) {
        if self.bad_batches_in_a_row >= MOST_BAD_BATCHES {
            self.ask_for_a_successor(RestartReason::BadOutput);
        }
        let seat = self.seat.as_ref().map(Seat::number);
        let (again, wrong_again): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.doubt.is_none());
        for job in wrong_again {
            if let Some(doubt) = &job.doubt {
                doubt.was_wrong_again();
            }
            let index = job.index();
            job.answer(Err(EmbedError::BadWorkerOutput { index }));
        }
        let doubt = Arc::new(Doubt::new(seat, again.len()));
        let again = again.into_iter().map(|job| Job { doubt: Some(Arc::clone(&doubt)), ..job });
        self.pool.rerun_singly(again.collect());
    }

    fn ask_for_a_successor(&self, reason: RestartReason) {
        if let Some(seat) = &self.seat {
            self.pool.replace(seat.number(), reason);
        }
    }

    /// Returns what the worker had not begun to the pool.
    fn finish(
        self,
        end: End,
        unsent: Option<Assignment>,
        mut assignments: mpsc::UnboundedReceiver<Assignment>,
    ) -> Outcome {
        assignments.close();
        let held = self.in_flight.len() + self.failed_alone.len();
        let in_flight = held + usize::from(unsent.is_some()) + assignments.len();
        let (mut computing, mut not_begun): (VecDeque<_>, VecDeque<_>) =
            self.in_flight.into_iter().partition(|batch| batch.begun.is_some());
        if computing.is_empty() {
            computing.extend(not_begun.pop_front());
        }
        let mut waiting: Vec<_> = not_begun.into_iter().filter_map(|batch| batch.work.assignment()).collect();
        waiting.extend(unsent);
        while let Ok(assignment) = assignments.try_recv() {
            waiting.push(assignment);
        }
        // What ended the worker after they had failed was not their doing.
        self.pool.settle(failure::jobs(self.failed_alone), Manner::OtherHand);
        self.pool.take_back(waiting);
        let computing = computing.into_iter().filter_map(|batch| batch.work.assignment());
        let computing = computing.flat_map(|assignment| assignment.jobs).collect();
        Outcome { end, batches_answered: self.batches_answered, in_flight, computing }
    }
}

/// Whether a raw vector can be right: every number finite, and a length between those of very small and very large ones.
fn is_usable(vector: &[u8]) -> bool {
    let numbers = vector.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
    // NaN and infinity make a sum that is in no range.
    SANE_SQUARED_NORMS.contains(&numbers.map(|number| number * number).sum::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_that_cannot_be_right_are_recognized() {
        let bytes =
            |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        assert!(is_usable(&bytes(&[0.0, -1.5])));
        assert!(is_usable(&bytes(&[1e-5, 0.0])));
        assert!(!is_usable(&bytes(&[0.0, -0.0])));
        assert!(!is_usable(&bytes(&[1.0, f32::NAN])));
        assert!(!is_usable(&bytes(&[f32::NEG_INFINITY, 1.0])));
        assert!(!is_usable(&bytes(&[3e38, 1.0])));
    }
}
