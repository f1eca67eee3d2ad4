//! What systemd is told, by the protocol of `sd_notify`: when the gateway is ready, that it still turns, and that it ends.
//! Elsewhere, where `NOTIFY_SOCKET` is not set, nobody is told anything.
//!
//! The gateway is ready when the first worker is. Until then it asks for more time again and again, because a model may
//! have to be downloaded. The watchdog is fed while the loops of [`Heart`] turn, whether there are workers or work or not.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::heart::Heart;

/// How often more time is asked for where there is no watchdog.
const INTERVAL: Duration = Duration::from_secs(10);
/// Signs of life in the time that the watchdog allows; the time between two is how long a loop may take to answer.
const SIGNS_PER_TIMEOUT: u32 = 3;

/// Where the gateway is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Serving,
    Stopping,
}

/// Handle to the task that tells.
#[derive(Debug)]
pub(crate) struct Notifier {
    stage: watch::Sender<Stage>,
}

impl Notifier {
    /// Begins to tell, where there is somebody to be told.
    pub(crate) fn start(heart: Heart) -> Self {
        let (stage, receiver) = watch::channel(Stage::Starting);
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            tell(&[NotifyState::Status("loading the model")]);
            tokio::spawn(Task { heart, stage: receiver, watchdog: sd_notify::watchdog_enabled() }.run());
        }
        Self { stage }
    }

    /// The first worker is ready.
    pub(crate) fn ready(&self) {
        self.stage.send_if_modified(|stage| {
            let is_first = *stage == Stage::Starting;
            if is_first {
                *stage = Stage::Serving;
            }
            is_first
        });
    }

    /// The gateway ends. From now on its loops may.
    pub(crate) fn stopping(&self) {
        self.stage.send_replace(Stage::Stopping);
    }
}

struct Task {
    heart: Heart,
    stage: watch::Receiver<Stage>,
    watchdog: Option<Duration>,
}

impl Task {
    async fn run(mut self) {
        let period = self.watchdog.map_or(INTERVAL, |timeout| timeout / SIGNS_PER_TIMEOUT);
        let mut ticks = tokio::time::interval(period.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_well = true;
        loop {
            tokio::select! {
                changed = self.stage.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.tell_stage();
                }
                _ = ticks.tick() => {
                    let stage = *self.stage.borrow();
                    let checked = if stage == Stage::Stopping { Ok(()) } else { self.heart.check(period).await };
                    match checked {
                        Ok(()) => self.tell_well(stage, period),
                        Err(name) if was_well => tracing::error!(
                            r#loop = name,
                            "a part of the gateway is stuck: the watchdog is not fed until it recovers"
                        ),
                        Err(_) => {}
                    }
                    was_well = checked.is_ok();
                }
            }
        }
    }

    fn tell_stage(&mut self) {
        match *self.stage.borrow_and_update() {
            Stage::Starting => {}
            Stage::Serving => {
                tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
                let watchdog_ms =
                    self.watchdog.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
                let loops = self.heart.names().join(", ");
                tracing::info!(watchdog_ms, loops, "notified systemd: ready");
            }
            Stage::Stopping => {
                tell(&[NotifyState::Stopping, NotifyState::Status("finishing admitted requests")]);
            }
        }
    }

    fn tell_well(&self, stage: Stage, period: Duration) {
        let mut states = Vec::new();
        if self.watchdog.is_some() {
            states.push(NotifyState::Watchdog);
        }
        if stage == Stage::Starting {
            let more = (period * SIGNS_PER_TIMEOUT).as_micros();
            states.push(NotifyState::ExtendTimeoutUsec(u32::try_from(more).unwrap_or(u32::MAX)));
        }
        if !states.is_empty() {
            tell(&states);
        }
    }
}

/// Who started the gateway may be gone, or listen no more: that is no reason to end.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify systemd");
    }
}
