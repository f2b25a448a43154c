//! The handlers without a socket, for whoever is in the same process: simulations, which have no sockets.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::connection::{Closing, Peer};
use super::namespace_pool::PoolService;
use super::{Api, Shared};
use crate::proto::namespace_pool_server::NamespacePool;

/// One caller's connection, as it were; dropped, it is closed.
pub struct Local {
    service: PoolService,
    _closing: Closing,
}

impl Local {
    /// With a caller of that uid. `stop` ends its waits.
    #[must_use]
    pub fn new(api: Api, uid: u32, stop: CancellationToken) -> Self {
        let shared = Shared::new(api, stop);
        let connection = shared.next_connection();
        let closing = Closing::of(&shared, connection);
        Self { service: PoolService::new(Arc::clone(&shared), Peer { uid, pid: 0, connection }), _closing: closing }
    }

    /// Its calls go straight to the handlers: without a deadline, without a limit of sizes.
    #[must_use]
    pub fn namespace_pool(&self) -> &impl NamespacePool {
        &self.service
    }
}
