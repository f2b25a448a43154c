//! A deadline for each piece of what takes as long as it is large.

use std::io;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};

use crate::engine::Chunks;

/// The first piece that does not come in time is an error, and the last.
pub(super) fn each_in_time(chunks: Chunks, deadline: Duration) -> Chunks {
    let next = move |chunks: Option<Chunks>| async move {
        let mut chunks = chunks?;
        match tokio::time::timeout(deadline, chunks.next()).await {
            Ok(piece) => piece.map(|piece| (piece, Some(chunks))),
            Err(_) => Some((Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing more within {deadline:?}"))), None)),
        }
    };
    stream::unfold(Some(chunks), next).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_piece_that_does_not_come_is_the_end() {
        let pieces = stream::iter([Ok("a".into()), Ok("b".into())]).chain(stream::pending()).boxed();
        let read: Vec<_> = each_in_time(pieces, Duration::from_secs(5)).collect().await;
        assert_eq!(read.len(), 3);
        assert!(read[..2].iter().all(Result::is_ok));
        assert_eq!(read[2].as_ref().unwrap_err().kind(), io::ErrorKind::TimedOut);
        let all: Vec<_> = each_in_time(stream::iter([Ok("a".into())]).boxed(), Duration::from_secs(5)).collect().await;
        assert!(all.len() == 1 && all[0].is_ok());
    }
}
