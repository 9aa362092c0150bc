//! A comparison behind a fence: what can be made ready is made ready before writes are held.
//!
//! In: settings, and later the word to go. Out: differences as they are certain, and the end. Before the word it connects to
//! both sides and, for a sample, walks over both and keeps the names of the keys that it takes, so that behind the fence only
//! these are read. It runs on a thread of its own: neither the job nor the fence's deadline waits for it, and dropping
//! [`Fenced`] ends it. Nothing is written at either side.

use super::difference::Difference;
use super::run::{Job, Observer};
use super::settings::{Mode, Rate, Repair, VerifySettings};
use super::state::Counts;
use super::summary::{Progress, Summary};
use super::walk;
use crate::engine::error::EngineError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

/// Of the memory, what the names of a sample may take.
const NAMES_SHARE: usize = 8;
/// Most keys a second that are chosen before the fence: the source has its writers to serve meanwhile.
const CHOOSING: Rate = Rate::KeysPerSecond(20_000);
/// What a name takes beside its bytes.
const NAME_OVERHEAD_BYTES: usize = 48;

/// What a comparison says.
#[derive(Debug)]
pub enum Told {
    /// It waits for the word; so many keys are to be looked at, as far as is known.
    Ready {
        keys: u64,
    },
    Difference(Box<Difference>),
    Progress(Progress),
    /// The last word.
    Ended(Result<Counts, String>),
}

/// A comparison made ready.
pub struct Fenced {
    go: watch::Sender<bool>,
    told: UnboundedReceiver<Told>,
}

impl Fenced {
    /// Begins to make it ready; the first word is `Ready`, or `Ended`. With `extras`, keys that only the target has are
    /// differences, too.
    pub fn begin(settings: VerifySettings, extras: bool) -> Result<Self, String> {
        let (go, going) = watch::channel(false);
        let (tell, told) = unbounded_channel();
        let run = move || {
            let result = tokio_uring::start(whole(&settings, extras, going, tell.clone()));
            let _ = tell.send(Told::Ended(result.map_err(|error| error.to_string())));
        };
        let thread = std::thread::Builder::new().name("verify".into()).spawn(run);
        thread.map_err(|error| format!("no thread for the comparison: {error}"))?;
        Ok(Self { go, told })
    }

    /// Writes are held: compare now.
    pub fn go(&self) {
        let _ = self.go.send(true);
    }

    /// The next word.
    pub async fn next(&mut self) -> Told {
        let gone = || Told::Ended(Err("the comparison ended without a word; please report it".into()));
        self.told.recv().await.unwrap_or_else(gone)
    }
}

struct Teller(UnboundedSender<Told>);

impl Observer for Teller {
    fn difference(&mut self, difference: &Difference) {
        let _ = self.0.send(Told::Difference(Box::new(difference.clone())));
    }

    fn progress(&mut self, progress: &Progress) {
        let _ = self.0.send(Told::Progress(progress.clone()));
    }
}

async fn whole(
    settings: &VerifySettings,
    extras: bool,
    mut going: watch::Receiver<bool>,
    tell: UnboundedSender<Told>,
) -> Result<Counts, EngineError> {
    debug_assert!(settings.repair == Repair::Off, "a repair would write");
    let (mut observer, mut summary) = (Teller(tell.clone()), Summary::new(settings));
    let work = async {
        let mut job = Job::begin(settings, &mut observer, &mut summary).await?;
        if !extras {
            job.pass_last = walk::PASS_SOURCE;
        }
        let sampled = matches!(settings.mode, Mode::Sample { .. });
        if sampled {
            job.set_rate(if settings.rate == Rate::Unlimited { CHOOSING } else { settings.rate });
            job.choose(settings.memory_bytes / NAMES_SHARE).await?;
        }
        let _ = tell.send(Told::Ready { keys: job.keys_expected });
        // Numbers were compared by whoever says the word.
        job.counts_first = false;
        if going.wait_for(|go| *go).await.is_err() {
            return Err(EngineError::Interrupted);
        }
        if !sampled {
            job.refresh_databases().await?;
        }
        job.set_rate(settings.rate);
        let result = job.work().await;
        let counts = job.counts.clone();
        job.end(result)?;
        Ok(counts)
    };
    // Whoever began it is the only one who can end it.
    tokio::select! {
        result = work => result,
        () = tell.closed() => Err(EngineError::Interrupted),
    }
}

impl Job<'_> {
    /// Walks over both sides and keeps the names of the keys that are chosen.
    async fn choose(&mut self, bytes_max: usize) -> Result<(), EngineError> {
        let mut bytes = 0;
        while self.position.pass <= self.pass_last {
            self.tick()?;
            let Some((origin, mut batch)) = self.next_batch().await? else { continue };
            let keys = std::mem::take(&mut batch.keys);
            let count = keys.len() as u64;
            bytes += keys.iter().map(|key| key.len() + NAME_OVERHEAD_BYTES).sum::<usize>();
            if bytes > bytes_max {
                return Err(EngineError::Refused(format!(
                    "the names of the sample take more than {bytes_max} bytes: take a smaller --sample"
                )));
            }
            self.chosen.extend(keys.into_iter().map(|key| (origin, key)));
            self.walked(batch, count).await;
        }
        if !self.counts.differing.is_empty() {
            return Err(EngineError::Target("slots of the cluster keep moving: let the moving end".into()));
        }
        // Most were met at both sides.
        let mut chosen = Vec::from(std::mem::take(&mut self.chosen));
        chosen.sort_unstable();
        chosen.dedup();
        self.keys_expected = chosen.len() as u64;
        self.counts.keys_walked = 0;
        self.chosen = chosen.into();
        Ok(())
    }
}
