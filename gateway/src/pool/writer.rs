//! The writing side of a worker's socket.

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Writes frames without holding up the reading of answers.
pub(super) struct Writer {
    frames: mpsc::UnboundedSender<Bytes>,
    task: AbortHandle,
}

impl Writer {
    /// Starts the task that writes.
    pub(super) fn start(mut socket: OwnedWriteHalf) -> Self {
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

    /// Writes a frame when those before it are written.
    pub(super) fn write(&self, frame: Bytes) {
        let _ = self.frames.send(frame);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
