//! How to reach the API server.

use std::path::PathBuf;

use http::Uri;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

/// How to reach the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiConfig {
    /// A kubeconfig file; without, the service account of the pod that this process runs in.
    pub kubeconfig: Option<PathBuf>,
    /// Addresses of API servers to use in turn instead of the configuration's. An agent must not need the service
    /// address of the API server: it is the one who makes that work.
    pub servers: Vec<Uri>,
}

/// There is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The kubeconfig file is not readable or not understood.
    #[error("reading kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// This process has no service account.
    #[error(
        "no service account of a pod is found: {0}; outside of a cluster, name a file: kubernetes:KUBECONFIG"
    )]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// A client cannot be made of the configuration.
    #[error("making a client for {server}: {source}")]
    Client {
        /// The server's address.
        server: Uri,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
}

impl ApiConfig {
    /// The client for the `turn`th server.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub(crate) async fn client(&self, turn: usize) -> Result<(Client, Uri), ConfigError> {
        let mut config = self.read().await?;
        if let Some(server) = self.servers.get(turn % self.servers.len().max(1)) {
            // The certificate is the cluster's, whatever address the server has.
            let host = config.cluster_url.host().map(str::to_owned);
            config.tls_server_name = config.tls_server_name.or(host);
            config.cluster_url = server.clone();
        }
        let server = config.cluster_url.clone();
        let client = Client::try_from(config);
        let client = client
            .map_err(|source| ConfigError::Client { server: server.clone(), source: Box::new(source) })?;
        Ok((client, server))
    }

    async fn read(&self) -> Result<Config, ConfigError> {
        let Some(path) = &self.kubeconfig else {
            return Config::incluster().map_err(|source| ConfigError::InCluster(Box::new(source)));
        };
        let fail = |source| ConfigError::Kubeconfig { path: path.clone(), source: Box::new(source) };
        let kubeconfig = Kubeconfig::read_from(path).map_err(fail)?;
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(fail)
    }
}
