//! What every request handler needs.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Config;
use super::body::ALWAYS_READ_BYTES;
use super::memory::Budget;
use super::origin::Gatekeeper;
use crate::machine;
use crate::manager::EmbeddingManager;
use crate::metrics::Metrics;

/// Long bodies that are parsed at a time.
const PARSERS: usize = 2;
/// Responses up to this size are always sent, even when the shared budget is used up.
const ALWAYS_ANSWERED_BYTES: usize = 32 * 1024;

/// Shared by all connections of a listener.
pub(super) struct Context {
    pub(super) config: Config,
    pub(super) gatekeeper: Gatekeeper,
    /// Memory for bodies and what is made of them.
    pub(super) bodies: Budget,
    /// Memory for responses.
    pub(super) responses: Budget,
    /// One permit for each long body that is parsed: it is in memory twice meanwhile.
    pub(super) parsers: Arc<Semaphore>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) manager: Arc<EmbeddingManager>,
}

impl Context {
    pub(super) fn new(config: Config, metrics: Arc<Metrics>, manager: Arc<EmbeddingManager>) -> Self {
        let host_name = machine::host_name();
        Self {
            gatekeeper: Gatekeeper::new(config.allow_remote, &config.allowed_hosts, host_name.as_deref()),
            bodies: Budget::new(config.max_bodies_bytes, ALWAYS_READ_BYTES),
            responses: Budget::new(config.max_response_bytes, ALWAYS_ANSWERED_BYTES),
            parsers: Arc::new(Semaphore::new(PARSERS)),
            config,
            metrics,
            manager,
        }
    }
}
