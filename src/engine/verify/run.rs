//! One comparison from its beginning to its end.
//!
//! In: resolved settings. Out: differences as they are certain, progress, a [`Summary`]. The walk goes over the source's
//! keys (compared), then over the target's (looked for at the source), database by database; suspects are looked at again
//! in between. Everything runs in the calling thread, on tokio-uring.

use super::difference::{Difference, Item, Kind, text};
use super::image::print_of;
use super::look::{ABSENT, Found, Looker, State, Verdict};
use super::names::Names;
use super::paged;
use super::peer::{AskError, Peer, Side};
use super::rate::Bucket;
use super::repair::Mender;
use super::settings::{Mode, Rate, VerifySettings};
use super::state::{self, Counts, Identity, Position, Saved};
use super::suspects::{Ruling, Suspect, Suspects};
use super::walk::{self, Choice};
use crate::engine::cluster::ranges;
use crate::engine::error::EngineError;
use crate::engine::job::{Signals, check_ring, exit_class};
use crate::engine::patience::rest;
use crate::engine::settings::NatMap;
use crate::report::document::{ExitClass, Outcome};
use crate::uring::RingSettings;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

mod counting;
mod mending;

pub use super::summary::{Progress, Summary};

/// Who is told what a comparison finds, as it finds it.
pub trait Observer {
    fn difference(&mut self, difference: &Difference);
    fn progress(&mut self, progress: &Progress);

    /// Has the job that writes to the target copy a key again, in order with its journal. `Ok`: it is on its way.
    fn ask_job(&mut self, _db: u32, _key: &[u8]) -> Result<(), String> {
        Err("there is no way to ask the job".into())
    }

    /// Whether a job can be asked. `Err`: why not.
    fn finds_job(&mut self) -> Result<(), String> {
        Err("there is no way to ask the job".into())
    }
}

/// Keys compared in one batch.
const BATCH_KEYS: usize = 256;
/// Suspects looked at again in one batch.
const AGAIN_KEYS: usize = 64;
/// Looks in quick succession before a difference is certain: a key that is written all the time is mostly met in between.
const LAST_LOOKS: u32 = 5;
const LAST_LOOKS_PAUSE: Duration = Duration::from_millis(7);
/// Between looks at a key that a job was asked to copy again.
const JOB_PAUSE_FIRST: Duration = Duration::from_millis(5);
const JOB_PAUSE_LAST: Duration = Duration::from_millis(200);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Keys found to differ that are remembered: of more than these some may be told twice.
const FOUND_MAX: usize = 1 << 17;
/// Of the memory, what one exchange's answers of one side may take, and what suspects may take.
const ANSWER_SHARE: usize = 8;
const SUSPECTS_SHARE: usize = 8;

/// Compares, to the end. Every failure is in the summary's outcome.
pub fn run(settings: VerifySettings, observer: &mut dyn Observer) -> Summary {
    let mut summary = Summary::new(&settings);
    // tokio-uring would panic where io_uring is not to be had; this says why and what to do.
    let result = check_ring(&RingSettings::default())
        .and_then(|()| tokio_uring::start(async { Job::run(&settings, observer, &mut summary).await }));
    summary.outcome = match result {
        Ok(()) if summary.keys_differing() > 0 => Outcome::failed(ExitClass::Differs, summary.differing_text(), None),
        Ok(()) => Outcome::done(),
        Err(error) => {
            let go_on = match &settings.resume {
                Some(path) if path.exists() => format!("; run again with --resume {} to go on", path.display()),
                _ => String::new(),
            };
            Outcome::failed(exit_class(error.class()), format!("{error}{go_on}"), None)
        }
    };
    summary
}

pub(super) struct Job<'a> {
    settings: &'a VerifySettings,
    observer: &'a mut dyn Observer,
    summary: &'a mut Summary,
    looker: Looker,
    mender: Mender,
    identity: Identity,
    databases: Vec<u32>,
    pub(super) position: Position,
    pub(super) counts: Counts,
    suspects: Suspects,
    /// Prints of what the walk found to differ: it may meet a key again, above all where slots move, and it is told once.
    found: HashSet<u64>,
    /// Suspects that are being looked at: they are in the state file, too.
    in_hand: Vec<(u32, Vec<u8>)>,
    /// Keys that were chosen before: they are compared first.
    pub(super) chosen: VecDeque<(u32, Vec<u8>)>,
    choice: Choice,
    /// The last pass of the walk.
    pub(super) pass_last: u32,
    /// The walk goes only over these databases of source and target; none: over all.
    only: Option<Vec<(u32, u32)>>,
    /// Numbers of keys are to be compared first.
    pub(super) counts_first: bool,
    pub(super) keys_expected: u64,
    progress_due: Duration,
    save_due: Duration,
}

impl<'a> Job<'a> {
    async fn run(
        settings: &'a VerifySettings,
        observer: &'a mut dyn Observer,
        summary: &'a mut Summary,
    ) -> Result<(), EngineError> {
        // Nobody asks a comparison to stop but by a signal.
        let mut signals = Signals::new(Arc::default())?;
        let mut job = signals.interruptible(Self::begin(settings, observer, summary)).await?;
        let result = signals.interruptible(job.work()).await;
        job.end(result)
    }

    pub(super) async fn begin(
        settings: &'a VerifySettings,
        observer: &'a mut dyn Observer,
        summary: &'a mut Summary,
    ) -> Result<Self, EngineError> {
        let bytes_max = settings.memory_bytes / ANSWER_SHARE;
        let timeout = settings.connect_timeout;
        let source = Peer::connect(Side::Source, &settings.source, &NatMap::default(), timeout, bytes_max).await?;
        let mut target =
            Peer::connect(Side::Target, &settings.target, &settings.target_nat, timeout, bytes_max).await?;
        (summary.source.server, summary.target.server) = (source.traits.name.clone(), target.traits.name.clone());
        let mender = Mender::new(settings, &mut target, observer).await?;
        let scope = settings.scope.clone();
        let names = Names::new(if target.traits.cluster { scope.within(1) } else { scope });
        target.names = Some(names.clone());
        let started = Instant::now();
        let mut looker = Looker {
            source,
            target,
            tolerance_ms: i64::try_from(settings.expiry_tolerance.as_millis()).unwrap_or(i64::MAX),
            policy: settings.on_unsupported.clone(),
            names,
            values: settings.mode != Mode::Count,
            bucket: Bucket::new(settings.rate, Duration::ZERO),
            started,
            bytes_paced: 0,
            elements_unpaid: 0,
        };
        let (databases, [source_keys, target_keys]) = keyspaces(&mut looker).await?;
        let choice = Choice::new(settings.mode, source_keys);
        let identity = Identity {
            source: settings.source_address(),
            target: settings.target_address(),
            source_run_ids: looker.source.run_ids(),
            target_run_ids: looker.target.run_ids(),
            mode: choice.name() + &looker.names.fingerprint(),
        };
        let mut job = Self {
            settings,
            observer,
            summary,
            looker,
            mender,
            identity,
            databases,
            position: Position { cursor: "0".into(), ..Position::default() },
            counts: Counts::default(),
            suspects: Suspects::new(settings.memory_bytes / SUSPECTS_SHARE),
            found: HashSet::new(),
            in_hand: Vec::new(),
            chosen: VecDeque::new(),
            choice,
            pass_last: walk::PASS_LAST,
            only: None,
            counts_first: settings.mode == Mode::Count,
            keys_expected: source_keys + target_keys,
            progress_due: Duration::ZERO,
            save_due: SAVE_EVERY,
        };
        job.take_up()?;
        Ok(job)
    }

    /// A database may have come since the comparison began.
    pub(super) async fn refresh_databases(&mut self) -> Result<(), EngineError> {
        let (databases, keys) = keyspaces(&mut self.looker).await?;
        (self.databases, self.keys_expected) = (databases, keys.iter().sum());
        Ok(())
    }

    pub(super) fn set_rate(&mut self, rate: Rate) {
        self.looker.bucket = Bucket::new(rate, self.now());
    }

    /// Goes on from the state file, if there is one.
    fn take_up(&mut self) -> Result<(), EngineError> {
        let Some(path) = &self.settings.resume else { return Ok(()) };
        if self.settings.mode == Mode::Count {
            return Ok(());
        }
        let Some(saved) = state::load(path, &self.identity)? else {
            // What cannot be written is better known now.
            return self.save();
        };
        self.in_hand = saved.suspect_keys();
        (self.databases, self.position, self.counts) = (saved.databases, saved.position, saved.counts);
        self.summary.resumed = true;
        Ok(())
    }

    pub(super) async fn work(&mut self) -> Result<(), EngineError> {
        if self.counts_first {
            self.count().await?;
        }
        self.look_at_saved().await?;
        loop {
            self.tick()?;
            let walked = self.position.pass > self.pass_last;
            let now = self.now();
            let due = self.suspects.next_due();
            if due.is_some_and(|due| due <= now) {
                self.look_again().await?;
            } else if !self.chosen.is_empty() && !self.suspects.is_full() {
                self.look_at_chosen().await?;
            } else if !walked && !self.suspects.is_full() {
                self.walk().await?;
            } else {
                let Some(due) = due else { return Ok(()) };
                tokio::time::sleep(due.saturating_sub(now).min(PROGRESS_EVERY)).await;
            }
        }
    }

    pub(super) fn end(&mut self, result: Result<(), EngineError>) -> Result<(), EngineError> {
        self.show_progress();
        self.summary.databases = self.databases.clone();
        self.summary.counts = self.counts.clone();
        self.summary.seconds = self.now().as_secs_f64();
        self.summary.bytes_from_source = self.looker.source.bytes_received;
        match (&result, &self.settings.resume) {
            (Ok(()), Some(path)) => state::remove(path),
            (Err(_), Some(_)) => self.save()?,
            _ => {}
        }
        result
    }

    fn now(&self) -> Duration {
        self.looker.started.elapsed()
    }

    pub(super) fn tick(&mut self) -> Result<(), EngineError> {
        let now = self.now();
        if now >= self.progress_due {
            self.progress_due = now + PROGRESS_EVERY;
            self.show_progress();
        }
        if now >= self.save_due && self.settings.resume.is_some() {
            self.save_due = now + SAVE_EVERY;
            self.save()?;
        }
        Ok(())
    }

    fn show_progress(&mut self) {
        let progress = Progress {
            elapsed: self.now(),
            pass: self.position.pass,
            database: self.databases.get(self.position.database).copied(),
            keys_walked: self.counts.keys_walked,
            keys_expected: self.keys_expected,
            keys_compared: self.counts.keys_compared,
            suspects: self.suspects.len() as u64,
            differing: self.counts.differing.values().sum(),
        };
        self.observer.progress(&progress);
    }

    fn save(&self) -> Result<(), EngineError> {
        let Some(path) = self.settings.resume.as_ref().filter(|_| self.settings.mode != Mode::Count) else {
            return Ok(());
        };
        let (databases, position) = (self.databases.clone(), self.position.clone());
        let mut saved = Saved::new(self.identity.clone(), databases, position, self.counts.clone());
        self.suspects.keys().for_each(|(db, key)| saved.add_suspect(db, key));
        self.in_hand.iter().for_each(|(db, key)| saved.add_suspect(*db, key));
        state::save(path, &saved)
    }

    /// The suspects of the run before.
    async fn look_at_saved(&mut self) -> Result<(), EngineError> {
        self.in_hand.sort();
        while let Some((db, _)) = self.in_hand.first() {
            let db = *db;
            let keys: Vec<Vec<u8>> = self
                .in_hand
                .iter()
                .take_while(|(of, _)| *of == db)
                .take(BATCH_KEYS)
                .map(|(_, key)| key.clone())
                .collect();
            let verdicts = self.looker.look(db, &keys).await?;
            self.in_hand.drain(..keys.len());
            for (key, verdict) in keys.into_iter().zip(verdicts) {
                self.first_verdict(db, key, verdict);
            }
            self.tick()?;
        }
        Ok(())
    }

    /// One batch of the chosen keys, which are in order.
    async fn look_at_chosen(&mut self) -> Result<(), EngineError> {
        let Some((db, _)) = self.chosen.front() else { return Ok(()) };
        let db = *db;
        let count = self.chosen.iter().take(BATCH_KEYS).take_while(|(of, _)| *of == db).count();
        let keys: Vec<Vec<u8>> = self.chosen.drain(..count).map(|(_, key)| key).collect();
        let verdicts = self.looker.look(db, &keys).await?;
        for (key, verdict) in keys.into_iter().zip(verdicts) {
            self.first_verdict(db, key, verdict);
        }
        self.counts.keys_walked += count as u64;
        self.counts.keys_compared += count as u64;
        Ok(())
    }

    /// The next keys of the walk, by the source's names, with the database there. None: the walk went on to another
    /// database or pass.
    pub(super) async fn next_batch(&mut self) -> Result<Option<(u32, walk::Batch)>, EngineError> {
        let Some(db) = self.databases.get(self.position.database).copied() else {
            self.position = walk::next_pass(&self.position);
            return Ok(None);
        };
        let of_source = self.position.pass == walk::PASS_SOURCE;
        let names = self.looker.names.clone();
        let origin = if of_source { Some(db).filter(|db| names.admits_db(*db)) } else { names.source_db(db) };
        let wanted = |at: &(u32, u32)| db == if of_source { at.0 } else { at.1 };
        let origin = origin.filter(|_| self.only.as_ref().is_none_or(|only| only.iter().any(wanted)));
        let Some(origin) = origin else {
            self.position = walk::next_database(&self.position);
            return Ok(None);
        };
        let peer = if of_source { &mut self.looker.source } else { &mut self.looker.target };
        let batch = walk::batch(peer, db, &self.position, (&self.choice, &names), BATCH_KEYS).await?;
        if !batch.moving.is_empty() {
            let reason = walk::moving_text(peer.side, &batch.moving);
            let item = Item::new(Kind::NotCompared).at(format!("slots {}", ranges(&batch.moving)));
            self.tell(origin, b"", String::new(), vec![item], None, Some(reason));
        }
        Ok(Some((origin, batch)))
    }

    /// One batch of keys is done with.
    pub(super) async fn walked(&mut self, batch: walk::Batch, count: u64) {
        let of_source = self.position.pass == walk::PASS_SOURCE;
        self.counts.keys_walked += batch.seen;
        self.position = batch.next;
        if of_source {
            // Passing over a key costs the source something, too.
            self.looker.pace(batch.seen.saturating_sub(count) / walk::PASSED_OVER_A_KEY).await;
        }
    }

    /// One batch of keys further.
    async fn walk(&mut self) -> Result<(), EngineError> {
        let Some((origin, mut batch)) = self.next_batch().await? else { return Ok(()) };
        let mut keys = std::mem::take(&mut batch.keys);
        let count = keys.len() as u64;
        let pass = self.position.pass;
        keys.retain(|key| !self.found.contains(&print_of(&(pass, origin, key))));
        if pass == walk::PASS_SOURCE {
            let verdicts = self.looker.look(origin, &keys).await?;
            for (key, verdict) in keys.into_iter().zip(verdicts) {
                if matches!(verdict, Verdict::Differs(_) | Verdict::NotCompared { .. }) {
                    self.remember(origin, &key);
                }
                self.first_verdict(origin, key, verdict);
            }
            self.counts.keys_compared += count;
        } else {
            let exist = self.looker.exist_at_source(origin, &keys).await?;
            let now = self.now();
            for (key, exists) in keys.into_iter().zip(exist) {
                if !exists {
                    self.remember(origin, &key);
                    let mut found = *Found::new("", vec![Item::new(Kind::Extra)]);
                    found.source = State { print: Some(ABSENT), expire_at_ms: None };
                    self.suspects.put(Suspect::new(origin, key, found, now, self.settings.lag_max));
                }
            }
            self.counts.keys_looked_for += count;
        }
        self.walked(batch, count).await;
        Ok(())
    }

    /// The walk found this key to differ.
    fn remember(&mut self, db: u32, key: &Vec<u8>) {
        if self.found.len() < FOUND_MAX {
            self.found.insert(print_of(&(self.position.pass, db, key)));
        }
    }

    fn first_verdict(&mut self, db: u32, key: Vec<u8>, verdict: Verdict) {
        match verdict {
            Verdict::Equal | Verdict::Gone => {}
            Verdict::NotCarried => self.counts.not_carried += 1,
            Verdict::Differs(found) => {
                let suspect = Suspect::new(db, key, *found, self.looker.started.elapsed(), self.settings.lag_max);
                self.suspects.put(suspect);
            }
            Verdict::NotCompared { type_name, reason } => {
                let item = Item::new(Kind::NotCompared);
                self.tell(db, &key, type_name, vec![item], None, Some(reason));
            }
        }
    }

    /// Looks again at suspects that are due.
    async fn look_again(&mut self) -> Result<(), EngineError> {
        let due = self.suspects.take_due(self.now(), AGAIN_KEYS);
        let Some(db) = due.first().map(|suspect| suspect.db) else { return Ok(()) };
        self.in_hand = due.iter().map(|suspect| (db, suspect.key.clone())).collect();
        let (parts, wholes): (Vec<Suspect>, Vec<Suspect>) = due.into_iter().partition(Suspect::has_elements);
        let keys: Vec<Vec<u8>> = wholes.iter().map(|suspect| suspect.key.clone()).collect();
        let mut verdicts = self.looker.look(db, &keys).await?;
        for suspect in &parts {
            verdicts.push(self.look_at_elements(suspect).await?);
        }
        for (suspect, verdict) in wholes.into_iter().chain(parts).zip(verdicts) {
            self.later_verdict(suspect, verdict).await?;
        }
        self.in_hand.clear();
        Ok(())
    }

    async fn look_at_elements(&mut self, suspect: &Suspect) -> Result<Verdict, EngineError> {
        let Suspect { db, key, type_name, .. } = suspect;
        match paged::look_elements(&mut self.looker, *db, key, type_name, &suspect.element_names()).await {
            Ok(verdict) => Ok(verdict),
            Err(AskError::TooLarge) => {
                Ok(self.looker.look(*db, std::slice::from_ref(key)).await?.pop().unwrap_or(Verdict::Gone))
            }
            Err(AskError::Engine(error)) => Err(error),
        }
    }

    async fn later_verdict(&mut self, mut suspect: Suspect, verdict: Verdict) -> Result<(), EngineError> {
        let (now, lag_max) = (self.now(), self.settings.lag_max);
        let found = match verdict {
            Verdict::Equal if suspect.has_elements() && !suspect.elements_settled(now) => {
                self.suspects.put(suspect);
                return Ok(());
            }
            Verdict::Equal | Verdict::Gone | Verdict::NotCarried => {
                self.counts.settled += 1;
                return Ok(());
            }
            Verdict::NotCompared { .. } => {
                self.first_verdict(suspect.db, suspect.key, verdict);
                return Ok(());
            }
            Verdict::Differs(found) => *found,
        };
        match suspect.differs_again(found, now, lag_max, self.looker.tolerance_ms) {
            Ruling::Wait => self.suspects.put(suspect),
            Ruling::Follows => self.counts.settled += 1,
            Ruling::Confirmed if self.is_met_equal(&suspect).await? => {
                if suspect.has_elements() && !suspect.elements_settled(now) {
                    self.suspects.put(suspect);
                } else {
                    self.counts.settled += 1;
                }
            }
            Ruling::Confirmed => self.confirmed(suspect).await?,
            Ruling::Unsettled => {
                let items = [vec![Item::new(Kind::Unsettled)], suspect.all_items()].concat();
                self.tell(suspect.db, &suspect.key, suspect.type_name, items, None, None);
            }
        }
        Ok(())
    }

    /// A few looks in quick succession, at a difference that seems certain.
    async fn is_met_equal(&mut self, suspect: &Suspect) -> Result<bool, EngineError> {
        for _ in 0..LAST_LOOKS {
            rest(LAST_LOOKS_PAUSE).await;
            let verdict = match suspect.has_elements() {
                false => self.looker.look(suspect.db, std::slice::from_ref(&suspect.key)).await?.pop(),
                true => Some(self.look_at_elements(suspect).await?),
            };
            if matches!(verdict, Some(Verdict::Equal | Verdict::Gone)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Prints and counts one key that differs; `items` is not empty.
    fn tell(
        &mut self,
        db: u32,
        key: &[u8],
        type_name: String,
        mut items: Vec<Item>,
        repaired: Option<bool>,
        reason: Option<String>,
    ) {
        if items.is_empty() {
            items.push(Item::new(Kind::Value));
        }
        let item = items.remove(0);
        *self.counts.differing.entry(item.kind.name().to_string()).or_insert(0) += 1;
        match repaired {
            Some(true) => self.counts.repaired += 1,
            Some(false) => self.counts.not_repaired += 1,
            None => {}
        }
        self.observer.difference(&Difference { db, key: text(key), type_name, item, more: items, repaired, reason });
    }
}

/// The databases in which either side has keys, and how many keys the source and the target have.
async fn keyspaces(looker: &mut Looker) -> Result<(Vec<u32>, [u64; 2]), EngineError> {
    let (at_source, at_target) = (looker.source.keyspace().await?, looker.target.keyspace().await?);
    let mut databases: Vec<u32> = at_source.iter().chain(&at_target).map(|(db, _)| *db).collect();
    databases.sort_unstable();
    databases.dedup();
    Ok((databases, [&at_source, &at_target].map(|dbs| dbs.iter().map(|(_, n)| n).sum())))
}
