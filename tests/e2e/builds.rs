//! Images that are built by the command line, from the context to a container that runs.

use std::path::Path;
use std::process::{Command, Stdio};

use nspool::engine::docker::Docker;
use nspool::engine::{Engine as _, EngineKind};

use crate::support::daemon::{NSPOOL, TestDaemon, text};
use crate::support::engines::{TestEngine, unique};
use crate::support::image::unique_busybox_archive;

on_both_engines!(a_folder_is_built_once_found_again_and_runs);

async fn a_folder_is_built_once_found_again_and_runs(engine: &TestEngine) {
    let base = format!("localhost/nspool-test-base-{:x}:1", unique());
    let client = Docker::connect(&engine.endpoint(), Some(engine.kind)).unwrap();
    client.load_image(unique_busybox_archive(&base).into()).await.unwrap();
    let daemon = TestDaemon::start(engine, &[]).await;
    let context = tempfile::tempdir().unwrap();
    let folder = context.path().to_str().unwrap();
    let write = |name: &str, content: &str| std::fs::write(context.path().join(name), content).unwrap();
    write("Dockerfile", &format!("FROM {base}\nARG WORD=none\nCOPY fn /fn\nRUN busybox chmod 755 /fn && echo $WORD >/word\n"));
    write("fn", "#!/bin/sh\necho works with $(cat /word)\n");
    write(".dockerignore", "*.log\n");
    let build = |args: &[&str]| daemon.json(&[&["image", "build", "--build-arg", "WORD=this", "--timeout", "60s"], args].concat());
    let first = build(&[folder]);
    let id = first["id"].as_str().unwrap();
    assert_eq!(first["reused"], false, "{first}");
    assert_eq!(engine.run(&["run", "--rm", "--network", "none", id, "/fn"]).trim(), "works with this");

    // As a folder and as a tar, in this daemon and the next one.
    write("left-out.log", "of no matter");
    assert_eq!((build(&[folder])["id"].as_str(), &build(&[folder])["reused"]), (Some(id), &true.into()));
    let piped = by_stdin(&daemon, context.path());
    assert_eq!((piped["id"].as_str(), &piped["reused"]), (Some(id), &true.into()), "{piped}");
    let listed = daemon.json(&["image", "list", "--built"]);
    assert!(listed["built"].as_array().unwrap().iter().any(|row| row["id"].as_str() == Some(id)), "{listed}");

    write("Dockerfile", &format!("FROM {base}\nRUN busybox false\n"));
    let failed = daemon.cli(&["image", "build", folder, "--timeout", "60s"]);
    assert!(!failed.status.success() && text(&failed.stderr).contains("busybox false"), "{failed:?}");
    write("Dockerfile", "FROM\n");
    let refused = daemon.cli(&["image", "build", folder]);
    assert!(refused.status.code() == Some(64) && text(&refused.stderr).contains("line 1"), "{refused:?}");

    engine.run(&["rmi", first["reference"].as_str().unwrap()]);
    engine.run(&["rmi", &base]);
    if engine.kind == EngineKind::Docker {
        assert_eq!(engine.run(&["ps", "-aq", "--filter", &format!("ancestor={base}")]).trim(), "", "no container is left of a build");
    }
}

fn by_stdin(daemon: &TestDaemon<'_>, context: &Path) -> serde_json::Value {
    let mut tar = Command::new("tar").args(["-C", context.to_str().unwrap(), "-c", "."]).stdout(Stdio::piped()).spawn().unwrap();
    let args = ["image", "build", "-", "--build-arg", "WORD=this", "-o", "json"];
    let output = daemon.cli_of(NSPOOL.as_ref(), &args).stdin(tar.stdout.take().unwrap()).output().unwrap();
    assert!(tar.wait().unwrap().success() && output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}
