//! The signals that the gateway obeys: SIGTERM and SIGINT ask it to stop, SIGHUP to replace its workers.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::StartError;

/// Counts the requests to stop (the first drains, a second one forces) and those to replace the workers.
#[derive(Debug, Clone)]
pub(crate) struct Signals {
    received: watch::Receiver<u32>,
    reloads: watch::Receiver<u32>,
}

impl Signals {
    /// Takes over SIGTERM, SIGINT and SIGHUP.
    pub(crate) fn install() -> Result<Self, StartError> {
        let refused = |source| StartError::System { action: "take over SIGTERM, SIGINT and SIGHUP", source };
        let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
        let mut hang_up = signal(SignalKind::hangup()).map_err(refused)?;
        let (stop_sender, received) = watch::channel(0);
        let (reload_sender, reloads) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                    _ = hang_up.recv() => {
                        reload_sender.send_modify(|count| *count += 1);
                        continue;
                    }
                };
                tracing::info!(signal = name, "stop requested");
                stop_sender.send_modify(|count| *count += 1);
            }
        });
        Ok(Self { received, reloads })
    }

    /// Waits for a request to replace the workers that this clone has not seen yet.
    pub(crate) async fn reload_requested(&mut self) {
        if self.reloads.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits for the first signal.
    pub(crate) async fn stop_requested(&self) {
        self.wait_for(1).await;
    }

    /// Waits for the second signal.
    pub(crate) async fn force_requested(&self) {
        self.wait_for(2).await;
    }

    async fn wait_for(&self, count: u32) {
        let mut received = self.received.clone();
        if received.wait_for(|received| *received >= count).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
