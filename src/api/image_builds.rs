//! `BuildImage`: the definition, the context on its way into a file, then what the build tells.
//!
//! All of it happens while the caller reads the answers: who goes away ends the way of the context, and its own wait for a build.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tonic::{Status, Streaming};

use super::connection::Peer;
use super::status::Refusal;
use super::{Shared, validate};
use crate::config::Builders;
use crate::image::build::{Building, Built, Context, Definition, Event, Row, Turn};
use crate::image::cache::{Failure, Kind};
use crate::proto;
use crate::proto::build_image_request::Part;
use crate::proto::build_image_response::Event as Told;

/// From one piece of a context to the next.
const PART_TIMEOUT: Duration = Duration::from_secs(60);

/// One caller's build, from the first message to the last.
pub(super) struct Builder {
    shared: Arc<Shared>,
    peer: Peer,
    turn: Turn,
    state: State,
}

enum State {
    Listening(Box<Streaming<proto::BuildImageRequest>>),
    Building(Box<Building>),
}

impl Builder {
    /// Who may not build is told so before anything is read.
    pub(super) fn new(shared: Arc<Shared>, peer: Peer, parts: Streaming<proto::BuildImageRequest>) -> Result<Self, Refusal> {
        let builds = &shared.images.as_ref().ok_or(Refusal::NoEngine)?.builds;
        if shared.builders == Builders::Operators && !shared.is_admin(peer) {
            return Err(Refusal::NotAllowed { uid: peer.uid });
        }
        let turn = builds.enter().map_err(Refusal::NotFetched)?;
        Ok(Self { shared, peer, turn, state: State::Listening(Box::new(parts)) })
    }

    /// The next answer; [`Told::Image`] is the last.
    pub(super) async fn next(&mut self) -> Result<Told, Status> {
        let stop = self.shared.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(Refusal::Stopping.into()),
            told = self.advance() => told,
        }
    }

    async fn advance(&mut self) -> Result<Told, Status> {
        loop {
            match &mut self.state {
                State::Listening(parts) => {
                    let definition = heard(&self.turn, &self.shared, self.peer, parts).await?;
                    self.state = State::Building(Box::new(self.turn.begin(definition)));
                }
                State::Building(building) => {
                    return match building.next().await.map_err(Refusal::NotFetched)? {
                        Event::Log { lines, missed } => {
                            Ok(Told::Log(proto::BuildLog { lines: lines.iter().map(ToString::to_string).collect(), missed }))
                        }
                        Event::Built(built) => Ok(Told::Image(image(&built))),
                    };
                }
            }
        }
    }
}

async fn heard(turn: &Turn, shared: &Shared, peer: Peer, parts: &mut Streaming<proto::BuildImageRequest>) -> Result<Definition, Status> {
    let first = parts.message().await?.and_then(|message| message.part);
    let Some(Part::Definition(asked)) = first else {
        return Err(Refusal::bad_field("part", "the first message has no definition").into());
    };
    let folder = !asked.context_folder.is_empty();
    let definition = validate::build(asked)?;
    tracing::debug!(folder, peer_uid = peer.uid, peer_pid = peer.pid, "an image is to be built");
    if folder {
        if !shared.is_admin(peer) {
            return Err(Refusal::NotAllowed { uid: peer.uid }.into());
        }
        return Ok(definition);
    }
    let failed = |error: &io::Error| {
        let kind = if error.kind() == io::ErrorKind::StorageFull { Kind::DiskFull } else { Kind::Failed };
        Refusal::NotFetched(Failure::new(kind, &format!("cannot keep the context: {error}")))
    };
    let file = turn.spool().map_err(|error| failed(&error))?;
    let mut spool = tokio::fs::File::from_std(file);
    let (limit, mut bytes) = (turn.context_limit(), 0);
    while let Some(message) = next_part(parts).await? {
        let Some(Part::Context(piece)) = message.part else {
            return Err(Refusal::bad_field("part", "only the first message may have a definition").into());
        };
        bytes += piece.len() as u64;
        if bytes > limit {
            return Err(Refusal::bad_field("context", format!("is larger than {limit} bytes ([images] context_limit)")).into());
        }
        spool.write_all(&piece).await.map_err(|error| failed(&error))?;
    }
    spool.flush().await.map_err(|error| failed(&error))?;
    Ok(Definition { context: Context::Tar(spool.into_std().await), ..definition })
}

/// Whoever stops in the midst of a context has a turn, and a file that grows no more: not for long.
async fn next_part(parts: &mut Streaming<proto::BuildImageRequest>) -> Result<Option<proto::BuildImageRequest>, Status> {
    let late = |_| {
        let why = format!("nothing of the context came for {}", humantime::format_duration(PART_TIMEOUT));
        Refusal::NotFetched(Failure::new(Kind::Invalid, &why))
    };
    tokio::time::timeout(PART_TIMEOUT, parts.message()).await.map_err(late)?
}

fn image(built: &Built) -> proto::BuiltImage {
    let (id, key, reference) = (built.id.to_string(), built.key.to_string(), built.name());
    proto::BuiltImage { id, key, reference, reused: built.reused, built: None, used: None, held_until: None }
}

/// As it stands in lists.
pub(super) fn listed(row: Row) -> proto::BuiltImage {
    let Row { key, id, built, used } = row;
    let known = image(&Built { id, key, reused: false });
    proto::BuiltImage { built: built.map(Into::into), used: used.map(Into::into), ..known }
}
