//! How a connection ends.

use std::time::Duration;

use akidb_protocol::ProtocolError;

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The worker closed its socket: it has ended or is about to.
    Closed,
    /// The worker sent something that it must not send.
    Protocol(ProtocolFault),
    /// The worker sent no heartbeat for this long.
    Silent(Duration),
    /// A batch made no progress for this long.
    NoProgress(Duration),
    /// The worker raised an error at its warm-up text, or gave no usable vector for it, after a text had failed.
    FailsWarmUp,
    /// A successor took over, and the last batch is answered.
    Relieved,
    /// The worker said that its device is lost.
    DeviceLost(String),
    /// The gateway stops.
    Stopped,
}

impl From<ProtocolFault> for End {
    fn from(fault: ProtocolFault) -> Self {
        Self::Protocol(fault)
    }
}

/// What was wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolFault {
    #[error("{0}")]
    Frame(#[from] ProtocolError),
    #[error("its socket ended inside a frame, after {0} bytes of it")]
    Cut(usize),
    #[error("a frame stalled for {0:?}, after {1} bytes of it")]
    Stalled(Duration, usize),
    #[error("a `{0}` message is not expected from a ready worker")]
    Unexpected(&'static str),
    #[error("batch {0} is not in flight")]
    UnknownBatch(u64),
    #[error(
        "{count} vectors of {dimension} numbers came for {expected_count} texts and {expected_dimension} numbers"
    )]
    WrongShape { count: u32, dimension: u32, expected_count: usize, expected_dimension: usize },
}
