//! Function containers: what an agent does with a lease, for `nspool demo` and `nspool bench`. The daemon never does any of it.
//!
//! A function is created here; it is started, waited for and removed as every container is, through [`crate::engine::Engine`]. Both kinds of
//! functions, in a lease and on a network of the engine, are made by the same lines, so that a comparison compares the network only.

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig};
use bollard::query_parameters::{CreateContainerOptions, RemoveImageOptions};

use super::{Docker, convert, errors};
use crate::engine::{ContainerId, EngineError, EngineKind, ErrorClass, ImageId, Labels};

/// One function container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionSpec {
    /// By id.
    pub image: ImageId,
    /// Entrypoint and arguments; empty: the image's own.
    pub command: Vec<String>,
    /// A network of the engine, or `container:<namespace id>`.
    pub network_mode: String,
    /// Labels of the container.
    pub labels: Labels,
    /// Capabilities it does not get, e.g. `NET_RAW`.
    pub cap_drop: Vec<String>,
}

impl Docker {
    /// Creates a function, not started, under a name of the engine's choice.
    ///
    /// # Errors
    /// As [`crate::engine::Engine::create`]; with [`ErrorClass::Unknown`] it may exist: look for its labels.
    pub async fn create_function(&self, spec: &FunctionSpec) -> Result<ContainerId, EngineError> {
        let kind = self.kind("create", &spec.network_mode).await?;
        let created = self.client.create_container(None::<CreateContainerOptions>, body(kind, spec)).await;
        created.map(|answer| answer.id.into()).map_err(|error| errors::convert("create", &spec.network_mode, &error))
    }

    /// Removes an image that nothing uses; that it is not there is success.
    ///
    /// # Errors
    /// [`ErrorClass::Refused`]: a container was made from it.
    pub async fn remove_image(&self, reference: &str) -> Result<(), EngineError> {
        if !convert::is_path_safe(reference) {
            return Err(errors::refused("remove image", ErrorClass::Refused, reference, "not an image reference"));
        }
        let removed = self.client.remove_image(reference, None::<RemoveImageOptions>, None).await;
        match removed.map_err(|error| errors::convert("remove image", reference, &error)) {
            Err(error) if error.class == ErrorClass::NotFound => Ok(()),
            done => done.map(drop),
        }
    }
}

/// As little as possible, so that the engine's own settings are in force for both sides of a comparison.
fn body(kind: EngineKind, spec: &FunctionSpec) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(spec.image.to_string()),
        entrypoint: (!spec.command.is_empty()).then(|| spec.command.clone()),
        labels: Some(spec.labels.clone().into_iter().collect()),
        host_config: Some(HostConfig {
            network_mode: Some(spec.network_mode.clone()),
            cap_drop: Some(spec.cap_drop.clone()),
            // Nobody reads what it says.
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            ulimits: convert::ulimits(kind),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_of_a_comparison_differ_in_the_network_only() {
        let spec = |network: &str| FunctionSpec {
            image: "sha256:1".into(),
            command: vec!["/init".into(), "exit".into()],
            network_mode: network.into(),
            labels: Labels::new(),
            cap_drop: vec!["NET_RAW".into()],
        };
        for kind in [EngineKind::Docker, EngineKind::Podman] {
            let mut bridge = serde_json::to_value(body(kind, &spec("bridge"))).unwrap();
            let lease = serde_json::to_value(body(kind, &spec("container:x"))).unwrap();
            assert_eq!(lease["Entrypoint"], serde_json::json!(["/init", "exit"]));
            assert_eq!(lease["HostConfig"]["Ulimits"].is_null(), kind == EngineKind::Docker);
            bridge["HostConfig"]["NetworkMode"] = "container:x".into();
            assert_eq!(bridge, lease);
        }
    }
}
