//! Which interpreters are prepared: at most so many, those that are asked for
//! most. Decides only; what it decides is done elsewhere.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Requests lose half their weight in this time.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// An interpreter takes another's place if it is asked for so much more.
const MARGIN: f32 = 2.0;
/// Two ends that nobody wished within this …
const CRASH_WINDOW: Duration = Duration::from_secs(10);
/// … and it is left alone for this.
const OFF: Duration = Duration::from_secs(60);
/// Keys that are remembered without an interpreter.
const MAX_COLD: usize = 256;

pub struct Limits {
    /// Interpreters at once.
    pub most: usize,
    /// Without a request for so long, one is given up.
    pub idle: Duration,
    /// It is replaced after so many requests …
    pub requests: u64,
    /// … or after so long.
    pub age: Duration,
}

/// `Z` is a handle to an interpreter; `I` tells whether what it was made of is
/// still the same.
pub struct Pool<K, I, Z> {
    limits: Limits,
    slots: HashMap<K, Slot<I, Z>>,
    closed: bool,
}

struct Slot<I, Z> {
    identity: I,
    rate: Rate,
    used: Instant,
    current: Option<Held<Z>>,
    /// One is asked for and not begun yet.
    ordered: bool,
    /// Is being prepared; not ready yet.
    next: Option<Z>,
    /// Left alone until then.
    off: Option<Instant>,
    /// For good: until its identity changes.
    never: bool,
    /// Was said to be ready before.
    known: bool,
    crash: Option<Instant>,
}

struct Held<Z> {
    zygote: Z,
    served: u64,
    since: Instant,
}

#[derive(Clone, Copy)]
struct Rate {
    weight: f32,
    at: Instant,
}

/// What is to be done for a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Pick<Z> {
    /// Runs it; `None`: exec.
    pub zygote: Option<Z>,
    /// An interpreter is to be prepared for those that follow.
    pub prepare: bool,
    /// There is none, but one will be ready soon.
    pub coming: bool,
    /// Is given up.
    pub retire: Vec<Z>,
}

impl<Z> Pick<Z> {
    fn plain() -> Self {
        Self {
            zygote: None,
            prepare: false,
            coming: false,
            retire: Vec::new(),
        }
    }
}

impl Rate {
    fn now(&self, now: Instant) -> f32 {
        let passed = now.saturating_duration_since(self.at).as_secs_f32();
        self.weight * (-passed / HALF_LIFE.as_secs_f32()).exp2()
    }

    fn count(&mut self, now: Instant) {
        self.weight = self.now(now) + 1.0;
        self.at = now;
    }
}

impl<K: Eq + Hash + Clone, I: PartialEq, Z: Clone + PartialEq> Pool<K, I, Z> {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            slots: HashMap::new(),
            closed: false,
        }
    }

    /// A request for `key` has come.
    pub fn pick(&mut self, key: &K, identity: I, now: Instant) -> Pick<Z> {
        if self.closed {
            return Pick::plain();
        }
        if !self.slots.contains_key(key) {
            self.forget_cold(now);
            self.slots.insert(key.clone(), Slot::new(identity, now));
        } else if self.slots[key].identity != identity {
            let slot = self.slots.insert(key.clone(), Slot::new(identity, now));
            let retire = slot.map_or_else(Vec::new, Slot::into_zygotes);
            return Pick {
                retire,
                ..self.pick_known(key, now)
            };
        }
        self.pick_known(key, now)
    }

    fn pick_known(&mut self, key: &K, now: Instant) -> Pick<Z> {
        let Some(slot) = self.slots.get_mut(key) else {
            return Pick::plain();
        };
        slot.rate.count(now);
        slot.used = now;
        if slot.never || slot.off.is_some_and(|until| now < until) {
            return Pick::plain();
        }
        if let Some(held) = &mut slot.current {
            held.served += 1;
            let worn = held.served >= self.limits.requests || now - held.since >= self.limits.age;
            let prepare = worn && slot.next.is_none() && !slot.ordered;
            slot.ordered |= prepare;
            return Pick {
                zygote: Some(held.zygote.clone()),
                prepare,
                ..Pick::plain()
            };
        }
        if slot.next.is_some() || slot.ordered {
            return Pick {
                coming: true,
                ..Pick::plain()
            };
        }
        let rate = slot.rate.now(now);
        let Some(retire) = self.make_room(rate, now) else {
            return Pick::plain();
        };
        if let Some(slot) = self.slots.get_mut(key) {
            slot.ordered = true;
        }
        Pick {
            zygote: None,
            prepare: true,
            coming: true,
            retire,
        }
    }

    /// Room for one more, by giving up the one that is asked for least, if
    /// that is much less. `None`: there is no room.
    fn make_room(&mut self, rate: f32, now: Instant) -> Option<Vec<Z>> {
        let taken = self.slots.values().filter(|slot| !slot.is_cold()).count();
        if taken < self.limits.most {
            return Some(Vec::new());
        }
        let least = self
            .slots
            .values_mut()
            .filter(|slot| slot.current.is_some() && slot.next.is_none())
            .min_by(|a, b| a.rate.now(now).total_cmp(&b.rate.now(now)))?;
        if rate < MARGIN * least.rate.now(now) {
            return None;
        }
        Some(least.take_zygotes())
    }

    /// Keys without an interpreter, the least asked for first.
    fn forget_cold(&mut self, now: Instant) {
        if self.slots.len() < MAX_COLD + self.limits.most {
            return;
        }
        let cold = self.slots.iter().filter(|(_, slot)| slot.is_cold());
        let least = cold.min_by(|(_, a), (_, b)| a.rate.now(now).total_cmp(&b.rate.now(now)));
        if let Some(key) = least.map(|(key, _)| key.clone()) {
            self.slots.remove(&key);
        }
    }

    /// The one that was asked for is being prepared. `false`: it is not wanted any
    /// more.
    pub fn preparing(&mut self, key: &K, identity: &I, zygote: Z) -> bool {
        match self.slots.get_mut(key) {
            Some(slot) if !self.closed && slot.ordered && slot.identity == *identity => {
                slot.ordered = false;
                slot.next = Some(zygote);
                true
            }
            _ => false,
        }
    }

    /// It can serve. Returns whether it is the first of its key, and whom it
    /// replaces.
    pub fn ready(&mut self, key: &K, zygote: &Z, now: Instant) -> (bool, Option<Z>) {
        let Some(slot) = self.slots.get_mut(key) else {
            return (false, None);
        };
        if slot.next.as_ref() != Some(zygote) {
            return (false, None);
        }
        let held = Held {
            zygote: zygote.clone(),
            served: 0,
            since: now,
        };
        slot.next = None;
        let first = !std::mem::replace(&mut slot.known, true);
        let before = slot.current.replace(held);
        (first, before.map(|held| held.zygote))
    }

    /// It will not serve, now or later. Returns whether that is news.
    pub fn never(&mut self, key: &K, zygote: &Z) -> bool {
        let Some(slot) = self.slots.get_mut(key).filter(|slot| slot.holds(zygote)) else {
            return false;
        };
        slot.give_up(zygote);
        !std::mem::replace(&mut slot.never, true)
    }

    /// None is to be made, now or later. Returns whether that is news.
    pub fn refuse(&mut self, key: &K) -> bool {
        let Some(slot) = self.slots.get_mut(key) else {
            return false;
        };
        slot.ordered = false;
        !std::mem::replace(&mut slot.never, true)
    }

    /// It is gone, though nobody wished it. Returns whether the key is left
    /// alone for a while now.
    pub fn crashed(&mut self, key: &K, zygote: &Z, now: Instant) -> bool {
        let Some(slot) = self.slots.get_mut(key).filter(|slot| slot.holds(zygote)) else {
            return false;
        };
        slot.give_up(zygote);
        let before = slot.crash.replace(now);
        let twice = before.is_some_and(|before| now - before < CRASH_WINDOW);
        if twice {
            slot.off = Some(now + OFF);
        }
        twice
    }

    /// It is gone, and that was right.
    pub fn left(&mut self, key: &K, zygote: &Z) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.give_up(zygote);
        }
    }

    /// None could be made.
    pub fn not_made(&mut self, key: &K, now: Instant) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.ordered = false;
            slot.off = Some(now + OFF);
        }
    }

    /// Those that nobody has asked for lately.
    pub fn take_idle(&mut self, now: Instant) -> Vec<Z> {
        let idle = self.limits.idle;
        let slots = self.slots.values_mut();
        slots
            .filter(|slot| now.saturating_duration_since(slot.used) >= idle)
            .flat_map(Slot::take_zygotes)
            .collect()
    }

    /// Gives up the one that is asked for least, with its replacement.
    pub fn take_least(&mut self, now: Instant) -> Vec<Z> {
        let slots = self
            .slots
            .values_mut()
            .filter(|slot| slot.current.is_some());
        let least = slots.min_by(|a, b| a.rate.now(now).total_cmp(&b.rate.now(now)));
        least.map_or_else(Vec::new, Slot::take_zygotes)
    }

    pub fn all(&self) -> Vec<Z> {
        let slots = self.slots.values();
        slots
            .flat_map(|slot| {
                slot.current
                    .iter()
                    .map(|held| &held.zygote)
                    .chain(&slot.next)
            })
            .cloned()
            .collect()
    }

    /// Gives all up; from now on every request is for exec.
    pub fn close(&mut self) -> Vec<Z> {
        self.closed = true;
        let slots = std::mem::take(&mut self.slots);
        slots.into_values().flat_map(Slot::into_zygotes).collect()
    }
}

impl<I, Z: Clone + PartialEq> Slot<I, Z> {
    fn new(identity: I, now: Instant) -> Self {
        Self {
            identity,
            rate: Rate {
                weight: 0.0,
                at: now,
            },
            used: now,
            current: None,
            ordered: false,
            next: None,
            off: None,
            never: false,
            known: false,
            crash: None,
        }
    }

    fn is_cold(&self) -> bool {
        self.current.is_none() && self.next.is_none() && !self.ordered
    }

    fn holds(&self, zygote: &Z) -> bool {
        self.next.as_ref() == Some(zygote)
            || self
                .current
                .as_ref()
                .is_some_and(|held| held.zygote == *zygote)
    }

    fn give_up(&mut self, zygote: &Z) {
        self.next.take_if(|next| next == zygote);
        self.current.take_if(|held| held.zygote == *zygote);
    }

    fn take_zygotes(&mut self) -> Vec<Z> {
        let current = self.current.take().map(|held| held.zygote);
        current.into_iter().chain(self.next.take()).collect()
    }

    fn into_zygotes(mut self) -> Vec<Z> {
        self.take_zygotes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Small = Pool<&'static str, u32, u32>;

    fn pool(most: usize) -> Small {
        Pool::new(Limits {
            most,
            idle: Duration::from_secs(60),
            requests: 3,
            age: Duration::from_secs(600),
        })
    }

    /// Makes `zygote` the ready one of `key`.
    fn warm(pool: &mut Small, key: &'static str, zygote: u32, now: Instant) {
        assert!(pool.pick(&key, 1, now).prepare, "{key}");
        assert!(pool.preparing(&key, &1, zygote));
        assert_eq!(pool.ready(&key, &zygote, now), (true, None));
    }

    #[test]
    fn the_request_that_has_one_prepared_is_left_to_exec() {
        let (mut pool, now) = (pool(8), Instant::now());
        let first = pool.pick(&"a", 1, now);
        assert_eq!((first.zygote, first.prepare), (None, true));
        let coming = Pick {
            coming: true,
            ..Pick::plain()
        };
        assert_eq!(pool.pick(&"a", 1, now), coming);
        assert!(pool.preparing(&"a", &1, 7));
        assert_eq!(pool.pick(&"a", 1, now), coming);
        pool.ready(&"a", &7, now);
        assert_eq!(pool.pick(&"a", 1, now).zygote, Some(7));
    }

    #[test]
    fn a_changed_interpreter_is_given_up_at_once() {
        let (mut pool, now) = (pool(8), Instant::now());
        warm(&mut pool, "a", 7, now);
        let pick = pool.pick(&"a", 2, now);
        assert_eq!(
            (pick.zygote, pick.prepare, pick.retire),
            (None, true, vec![7])
        );
        // One that was begun before is of no use either.
        assert!(!pool.preparing(&"a", &1, 8));
    }

    #[test]
    fn the_one_asked_for_least_makes_room_for_one_asked_for_much_more() {
        let (mut pool, now) = (pool(2), Instant::now());
        warm(&mut pool, "a", 1, now);
        warm(&mut pool, "b", 2, now);
        pool.pick(&"b", 1, now);
        assert_eq!(pool.pick(&"c", 1, now), Pick::plain());
        let pick = pool.pick(&"c", 1, now);
        assert_eq!((pick.prepare, pick.retire), (true, vec![1]));
        assert_eq!(pool.all(), [2]);
    }

    #[test]
    fn a_worn_one_serves_until_the_next_is_ready() {
        let (mut pool, now) = (pool(8), Instant::now());
        warm(&mut pool, "a", 1, now);
        for last in [false, false, true] {
            let pick = pool.pick(&"a", 1, now);
            assert_eq!((pick.zygote, pick.prepare), (Some(1), last));
        }
        assert!(pool.preparing(&"a", &1, 2));
        assert_eq!(pool.pick(&"a", 1, now).zygote, Some(1));
        assert_eq!(pool.ready(&"a", &2, now), (false, Some(1)));
        assert_eq!(pool.pick(&"a", 1, now).zygote, Some(2));
        let late = now + Duration::from_secs(601);
        assert!(pool.pick(&"a", 1, late).prepare, "by age");
    }

    #[test]
    fn two_crashes_within_ten_seconds_switch_off_for_a_minute() {
        let (mut pool, mut now) = (pool(8), Instant::now());
        warm(&mut pool, "a", 1, now);
        assert!(!pool.crashed(&"a", &1, now));
        assert!(!pool.crashed(&"a", &1, now), "it is the same one");
        now += Duration::from_secs(9);
        assert!(pool.pick(&"a", 1, now).prepare);
        assert!(pool.preparing(&"a", &1, 2));
        assert!(pool.crashed(&"a", &2, now));
        assert_eq!(pool.pick(&"a", 1, now), Pick::plain());
        now += Duration::from_secs(59);
        assert_eq!(pool.pick(&"a", 1, now), Pick::plain());
        now += Duration::from_secs(1);
        assert!(pool.pick(&"a", 1, now).prepare);
    }

    #[test]
    fn one_that_leaves_by_itself_is_followed_by_another_at_once() {
        let (mut pool, now) = (pool(8), Instant::now());
        for zygote in 1..4 {
            warm_again(&mut pool, zygote, now);
            pool.left(&"a", &zygote);
        }
        assert!(pool.pick(&"a", 1, now).prepare);
    }

    /// Makes `zygote` the ready one of "a", which may have had others.
    fn warm_again(pool: &mut Small, zygote: u32, now: Instant) {
        assert!(pool.pick(&"a", 1, now).prepare);
        assert!(pool.preparing(&"a", &1, zygote));
        pool.ready(&"a", &zygote, now);
    }

    #[test]
    fn one_that_declines_for_good_is_asked_again_only_when_it_has_changed() {
        let (mut pool, now) = (pool(8), Instant::now());
        pool.pick(&"a", 1, now);
        pool.preparing(&"a", &1, 1);
        assert!(pool.never(&"a", &1));
        assert_eq!(pool.pick(&"a", 1, now + OFF), Pick::plain());
        assert!(pool.pick(&"a", 2, now).prepare);
    }

    #[test]
    fn idle_ones_are_given_up_and_come_back_when_asked_for() {
        let (mut pool, now) = (pool(8), Instant::now());
        warm(&mut pool, "a", 1, now);
        assert!(pool.take_idle(now + Duration::from_secs(59)).is_empty());
        let later = now + Duration::from_secs(60);
        assert_eq!(pool.take_idle(later), [1]);
        assert!(pool.pick(&"a", 1, later).prepare);
    }

    #[test]
    fn for_want_of_memory_the_one_asked_for_least_goes_first() {
        let (mut pool, now) = (pool(8), Instant::now());
        warm(&mut pool, "a", 1, now);
        warm(&mut pool, "b", 2, now);
        pool.pick(&"a", 1, now);
        assert_eq!(pool.take_least(now), [2]);
        assert_eq!(pool.take_least(now), [1]);
        assert!(pool.take_least(now).is_empty());
    }

    #[test]
    fn a_closed_pool_gives_all_up_and_nothing_out() {
        let (mut pool, now) = (pool(8), Instant::now());
        warm(&mut pool, "a", 1, now);
        assert_eq!(pool.close(), [1]);
        assert_eq!(pool.pick(&"a", 1, now), Pick::plain());
        assert!(!pool.preparing(&"a", &1, 2));
    }

    #[test]
    fn keys_without_an_interpreter_do_not_pile_up() {
        let mut pool = Pool::<u32, u32, u32>::new(pool(0).limits);
        for key in 0..1000 {
            pool.pick(&key, 1, Instant::now());
        }
        assert_eq!(pool.slots.len(), MAX_COLD);
    }
}
