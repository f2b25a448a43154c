//! Folders among the pool's that are no slot's: of uses that are over, whose end was not carried through, and of a pool that was on another engine.
//!
//! What goes, and on which proof. By its name and by what is in it such a folder is a use's of this pool, of a container: nothing but namespaces. And it is
//! nobody's. Where buddies are containers, it is so when no slot has the name, as the lock on the pool and its engine is ours. Where they are not, the pool of
//! that name on a container engine may live, with a lock of its own: then it is nobody's when nobody is in these namespaces, since whatever a container's slot
//! hands out its buddy is in. The folder is only a way in: who is in there stays, and what else holds the namespaces does.
//!
//! What is left alone, and said: a native buddy's folder, of which it is not known who is in it · one with something else in it · one that nothing is mounted
//! in · one that nspool did not name · whatever cannot be looked at.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::NamespaceKind;
use crate::netns::Kernel;
use crate::netns::folders::{Folder, Mounter, Open, RECORD, UNFINISHED, namespace_id};

/// Folders whose namespaces are held open for one search.
const SEARCHED_TOGETHER: usize = 64;

/// See the module. Of one pool.
pub struct Leftovers {
    root: PathBuf,
    pool: String,
    mounter: Arc<dyn Mounter>,
    /// Who looks for processes, where buddies are folders themselves.
    search: Option<Arc<dyn Kernel>>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leftover {
    /// Below the pool's folder.
    pub(crate) name: String,
    /// Whose it was, by its name.
    pub(crate) slot: Option<u32>,
    /// Why it is left alone; `None`: it may go.
    pub(crate) doubt: Option<String>,
}

impl Leftovers {
    /// Of a pool whose buddies are containers.
    #[must_use]
    pub fn beside_containers(root: PathBuf, pool: String, mounter: Arc<dyn Mounter>) -> Self {
        Self { root, pool, mounter, search: None }
    }

    /// Of a pool whose buddies are folders.
    #[must_use]
    pub fn beside_folders(root: PathBuf, pool: String, mounter: Arc<dyn Mounter>, kernel: Arc<dyn Kernel>) -> Self {
        Self { root, pool, mounter, search: Some(kernel) }
    }

    /// Those that have none of these names.
    ///
    /// # Errors
    /// The pool's folder cannot be listed.
    pub(crate) async fn look(&self, present: &BTreeSet<String>) -> io::Result<Vec<Leftover>> {
        let mut found = self.list()?;
        found.retain(|leftover| !present.contains(&leftover.name));
        if let Some(kernel) = &self.search {
            for some in found.chunks_mut(SEARCHED_TOGETHER) {
                self.search(kernel.as_ref(), some).await;
            }
        }
        Ok(found)
    }

    /// Of those that have none of these names, those go that may: with the others, and why.
    ///
    /// # Errors
    /// The pool's folder cannot be listed.
    pub(crate) async fn sweep(&self, present: &BTreeSet<String>) -> io::Result<Vec<(String, String)>> {
        let mut alone = Vec::new();
        for Leftover { name, doubt, .. } in self.look(present).await? {
            match doubt {
                Some(why) => alone.push((name, why)),
                None => self.clear(&name).await,
            }
        }
        Ok(alone)
    }

    /// One that may go. It is in the log when it does not.
    pub(crate) async fn clear(&self, name: &str) {
        let cleared = match Folder::new(&self.pool, name) {
            Ok(folder) => self.mounter.clear(&folder).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match cleared {
            Ok(()) => tracing::info!(name, "cleared the folder of a use that is over"),
            Err(error) => tracing::warn!(name, error, "the folder of a use that is over stays"),
        }
    }

    /// It is a folder in memory, as a rule: nothing is waited for.
    fn list(&self) -> io::Result<Vec<Leftover>> {
        let entries = match std::fs::read_dir(self.root.join(&self.pool)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            // One that is about to be made, or the native engine's, which lists it as a buddy.
            if name.starts_with(UNFINISHED) || self.search.is_some() && path.join(RECORD).exists() {
                continue;
            }
            let slot = self.slot_of(&name);
            let doubt = if slot.is_none() { Some("nspool did not name it".to_owned()) } else { doubt_of(&path) };
            found.push(Leftover { name, slot, doubt });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// As [`Breed::name`](super::buddy::Breed::name) has it.
    fn slot_of(&self, name: &str) -> Option<u32> {
        let parts: Vec<&str> = name.strip_prefix("nspool-")?.strip_prefix(&self.pool)?.strip_prefix('-')?.split('-').collect();
        let [slot, generation, use_number, random] = parts[..] else { return None };
        let is_ours = generation.parse::<u64>().is_ok()
            && use_number.parse::<u64>().is_ok()
            && random.len() == 8
            && random.bytes().all(|digit| digit.is_ascii_hexdigit());
        slot.parse().ok().filter(|_| is_ours)
    }

    /// Whether somebody is in their namespaces.
    async fn search(&self, kernel: &dyn Kernel, some: &mut [Leftover]) {
        let mut held = Vec::new();
        for leftover in some.iter_mut().filter(|leftover| leftover.doubt.is_none()) {
            match self.open(&leftover.name).await {
                Ok(open) => held.push((leftover, open)),
                Err(why) => leftover.doubt = Some(why),
            }
        }
        for kind in NamespaceKind::JOINABLE {
            let mut of_kind = Vec::new();
            for (leftover, open) in &mut held {
                let Some((_, namespace)) = open.iter().find(|(of, _)| *of == kind) else { continue };
                match namespace_id(namespace) {
                    Ok(id) => of_kind.push((id, &mut leftover.doubt)),
                    Err(errno) => leftover.doubt = Some(errno.to_string()),
                }
            }
            let ids: Vec<_> = of_kind.iter().map(|(id, _)| *id).collect();
            if ids.is_empty() {
                continue;
            }
            let members = kernel.members(kind, &ids).await.map_err(|error| error.to_string());
            for (id, doubt) in of_kind {
                match members.as_ref().map(|members| members.get(&id).and_then(|inside| inside.first())) {
                    Ok(None) => {}
                    Ok(Some(first)) => *doubt = Some(format!("{first} is in its {} namespace", kind.proc_name())),
                    Err(error) => *doubt = Some(error.clone()),
                }
            }
        }
    }

    async fn open(&self, name: &str) -> Result<Open, String> {
        let folder = Folder::new(&self.pool, name).map_err(|error| error.to_string())?;
        self.mounter.open(&folder, &NamespaceKind::JOINABLE).await.map_err(|error| error.to_string())
    }
}

/// By what is in it.
fn doubt_of(path: &Path) -> Option<String> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return Some(error.to_string()),
    };
    for entry in entries {
        let name = match entry {
            Ok(entry) => entry.file_name(),
            Err(error) => return Some(error.to_string()),
        };
        if name == RECORD {
            return Some("it is a buddy of the native engine's, which this pool is not on".to_owned());
        }
        if !NamespaceKind::JOINABLE.iter().any(|kind| name == kind.proc_name()) {
            return Some(format!("{} in it is not nspool's", name.display()));
        }
    }
    None
}
