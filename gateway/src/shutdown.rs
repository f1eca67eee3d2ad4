//! The signals that ask the gateway to stop.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::StartError;

/// Counts the requests to stop: the first drains, a second one forces.
#[derive(Debug, Clone)]
pub(crate) struct Signals {
    received: watch::Receiver<u32>,
}

impl Signals {
    /// Takes over SIGTERM and SIGINT.
    pub(crate) fn install() -> Result<Self, StartError> {
        let refused = |source| StartError::System { action: "take over SIGTERM and SIGINT", source };
        let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
        let (sender, received) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                tracing::info!(signal = name, "stop requested");
                sender.send_modify(|count| *count += 1);
            }
        });
        Ok(Self { received })
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
