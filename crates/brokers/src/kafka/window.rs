//! What a reader of a classic group has of its topic: such a group keeps one number, the offset before which all is done, and a
//! short text beside it. The text says what behind that offset is not done yet and how often it was handed out, so a reader that
//! takes over from one that was killed counts on, and hands out nothing that was done.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

/// What the text begins with.
const VERSION: &str = "sluice-1";

/// One message that is not done.
#[derive(Debug)]
struct Item<M> {
    message: M,
    /// How often it was handed out, this time included.
    attempts: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be handed out.
    Ready,
    /// Handed out once it is noted that it is.
    Noted,
    /// In somebody's hands, by this number.
    Out(u64),
    /// To be handed out again then.
    Later(Instant),
}

#[derive(Debug)]
pub(super) struct Window<M> {
    /// Behind the last message that has come.
    end: i64,
    items: BTreeMap<i64, Item<M>>,
    /// To be handed out, in this order.
    ready: VecDeque<i64>,
    /// Handed out once they are noted, in this order.
    noting: Vec<i64>,
    /// Of messages that have not come again yet: those before this offset are done but for these, handed out so often.
    earlier_end: i64,
    earlier: BTreeMap<i64, u32>,
    /// Whether what was written last is not so any more.
    is_changed: bool,
}

/// A message that may be handed out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Next<M> {
    pub(super) offset: i64,
    pub(super) message: M,
    pub(super) attempt: u32,
}

impl<M: Clone> Window<M> {
    /// Where a group stands: its offset, and what was written beside it; anybody else's text says nothing.
    pub(super) fn new(committed: i64, text: &str) -> Self {
        let (earlier_end, earlier) = read(committed, text).unwrap_or((committed, BTreeMap::new()));
        Self {
            end: committed,
            items: BTreeMap::new(),
            ready: VecDeque::new(),
            noting: Vec::new(),
            earlier_end,
            earlier,
            is_changed: false,
        }
    }

    /// A message has come. `is_wanted` is not so of one that is done without being handed out.
    pub(super) fn arrived(&mut self, offset: i64, message: M, is_wanted: bool) {
        if offset < self.end {
            return;
        }
        self.end = offset + 1;
        // What is not there any more is done: the broker dropped it.
        let behind = self.earlier.split_off(&offset);
        self.is_changed |= !std::mem::replace(&mut self.earlier, behind).is_empty();
        let attempts = self.earlier.remove(&offset);
        let is_done = attempts.is_none() && offset < self.earlier_end;
        if is_done || !is_wanted {
            self.is_changed = true;
            return;
        }
        self.items.insert(offset, Item { message, attempts: attempts.unwrap_or(0), state: State::Ready });
        self.ready.push_back(offset);
    }

    fn count(&self, which: impl Fn(State) -> bool) -> usize {
        self.items.values().filter(|item| which(item.state)).count()
    }

    /// Messages in somebody's hands, or about to be.
    pub(super) fn out(&self) -> usize {
        self.count(|state| matches!(state, State::Noted | State::Out(_)))
    }

    /// Messages that wait here until they are due.
    pub(super) fn later(&self) -> usize {
        self.count(|state| matches!(state, State::Later(_)))
    }

    /// Whether something is to be handed out.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) const fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// Counts what is handed out next, so many at most, and says what is to be written before that: the offset and the text.
    pub(super) fn note(&mut self, out_max: usize) -> (i64, String) {
        let mut room = out_max.saturating_sub(self.out());
        while room > 0
            && let Some(offset) = self.ready.pop_front()
        {
            if let Some(item) = self.items.get_mut(&offset) {
                item.state = State::Noted;
                item.attempts += 1;
                self.noting.push(offset);
                room -= 1;
            }
        }
        self.is_changed = false;
        (self.committed(), self.text())
    }

    /// It is written: what may be handed out, each under a number from `number` on.
    pub(super) fn noted(&mut self, number: &mut u64) -> Vec<(u64, Next<M>)> {
        let mut next = Vec::new();
        for offset in std::mem::take(&mut self.noting) {
            let Some(item) = self.items.get_mut(&offset) else { continue };
            *number += 1;
            item.state = State::Out(*number);
            next.push((*number, Next { offset, message: item.message.clone(), attempt: item.attempts }));
        }
        next
    }

    /// It could not be written: nothing was handed out.
    pub(super) fn not_noted(&mut self) {
        for offset in std::mem::take(&mut self.noting).into_iter().rev() {
            let Some(item) = self.items.get_mut(&offset) else { continue };
            item.state = State::Ready;
            item.attempts -= 1;
            self.ready.push_front(offset);
        }
        self.is_changed = true;
    }

    fn out_as(&self, number: u64) -> Option<i64> {
        self.items.iter().find(|(_, item)| item.state == State::Out(number)).map(|(offset, _)| *offset)
    }

    pub(super) fn done(&mut self, number: u64) {
        if let Some(offset) = self.out_as(number) {
            self.items.remove(&offset);
            self.is_changed = true;
        }
    }

    /// Handed out again, then or at once behind what is ready. What was not tried does not count.
    pub(super) fn again(&mut self, number: u64, at: Option<Instant>, is_tried: bool) {
        let Some(offset) = self.out_as(number) else { return };
        let Some(item) = self.items.get_mut(&offset) else { return };
        if !is_tried {
            item.attempts -= 1;
            self.is_changed = true;
        }
        match at {
            Some(at) => item.state = State::Later(at),
            None => {
                item.state = State::Ready;
                self.ready.push_back(offset);
            }
        }
    }

    /// When the next of those that wait is to be handed out.
    pub(super) fn due(&self) -> Option<Instant> {
        let later = |item: &Item<M>| match item.state {
            State::Later(at) => Some(at),
            State::Ready | State::Noted | State::Out(_) => None,
        };
        self.items.values().filter_map(later).min()
    }

    pub(super) fn take_due(&mut self, now: Instant) {
        for (offset, item) in &mut self.items {
            if matches!(item.state, State::Later(at) if at <= now) {
                item.state = State::Ready;
                self.ready.push_back(*offset);
            }
        }
    }

    /// Before it all is done.
    fn committed(&self) -> i64 {
        let first = self.items.keys().chain(self.earlier.keys()).min();
        first.copied().unwrap_or_else(|| self.end.max(self.earlier_end))
    }

    fn text(&self) -> String {
        let base = self.committed();
        let end = self.end.max(self.earlier_end);
        if base == end {
            return String::new();
        }
        let mut text = format!("{VERSION} {}", end - base);
        let tried = self.items.iter().map(|(offset, item)| (*offset, item.attempts));
        for (offset, attempts) in tried.chain(self.earlier.iter().map(|(offset, tried)| (*offset, *tried))) {
            text += &format!(" {}:{attempts}", offset - base);
        }
        text
    }
}

fn read(committed: i64, text: &str) -> Option<(i64, BTreeMap<i64, u32>)> {
    let mut words = text.split(' ');
    if words.next() != Some(VERSION) {
        return None;
    }
    let number = |text: &str| text.parse::<i64>().ok().filter(|number| *number >= 0);
    let end = committed.checked_add(number(words.next()?)?)?;
    let mut tried = BTreeMap::new();
    for word in words {
        let (offset, attempts) = word.split_once(':')?;
        tried.insert(committed.checked_add(number(offset)?)?, attempts.parse().ok()?);
    }
    Some((end, tried))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Hands out so many and answers their numbers and attempts.
    fn hand_out(window: &mut Window<i64>, max: usize, number: &mut u64) -> Vec<(u64, i64, u32)> {
        window.note(max);
        let next = window.noted(number).into_iter();
        next.map(|(number, next)| (number, next.offset, next.attempt)).collect()
    }

    fn filled(from: i64, to: i64) -> Window<i64> {
        let mut window = Window::new(from, "");
        (from..to).for_each(|offset| window.arrived(offset, offset, true));
        window
    }

    #[test]
    fn all_before_the_first_that_is_not_done_is_committed() {
        let (mut window, mut number) = (filled(10, 14), 0);
        assert_eq!(hand_out(&mut window, 3, &mut number), [(1, 10, 1), (2, 11, 1), (3, 12, 1)]);
        window.done(2);
        assert_eq!(window.note(0), (10, "sluice-1 4 0:1 2:1 3:0".to_owned()));
        window.done(1);
        assert_eq!(window.note(0), (12, "sluice-1 2 0:1 1:0".to_owned()));
        window.done(3);
        assert_eq!(hand_out(&mut window, 3, &mut number), [(4, 13, 1)]);
        window.done(4);
        assert_eq!(window.note(0), (14, String::new()));
    }

    #[test]
    fn who_takes_over_counts_on_and_hands_out_nothing_that_was_done() {
        let (mut window, mut number) = (filled(0, 5), 0);
        hand_out(&mut window, 4, &mut number);
        window.done(2);
        window.done(4);
        let (committed, text) = window.note(0);
        let mut next = Window::new(committed, &text);
        // What comes late is still known.
        assert_eq!(next.note(0), (committed, text.clone()));
        for offset in 0..7 {
            next.arrived(offset, offset, true);
        }
        let mut number = 0;
        let handed = hand_out(&mut next, 9, &mut number);
        assert_eq!(handed, [(1, 0, 2), (2, 2, 2), (3, 4, 1), (4, 5, 1), (5, 6, 1)]);
    }

    #[test]
    fn what_is_given_back_comes_behind_the_others_and_counts_if_it_was_tried() {
        let (mut window, mut number) = (filled(0, 3), 0);
        hand_out(&mut window, 1, &mut number);
        window.again(1, None, true);
        assert_eq!(hand_out(&mut window, 1, &mut number), [(2, 1, 1)]);
        window.again(2, None, false);
        assert_eq!(hand_out(&mut window, 1, &mut number), [(3, 2, 1)]);
        window.done(3);
        assert_eq!(hand_out(&mut window, 2, &mut number), [(4, 0, 2), (5, 1, 1)]);
    }

    #[tokio::test]
    async fn what_is_wanted_later_comes_when_it_is_due() {
        let (mut window, mut number) = (filled(0, 2), 0);
        hand_out(&mut window, 1, &mut number);
        let at = Instant::now() + Duration::from_secs(9);
        window.again(1, Some(at), true);
        assert_eq!((window.due(), window.later()), (Some(at), 1));
        window.take_due(at - Duration::from_millis(1));
        assert_eq!(hand_out(&mut window, 9, &mut number), [(2, 1, 1)]);
        window.take_due(at);
        assert_eq!(hand_out(&mut window, 9, &mut number), [(3, 0, 2)]);
    }

    #[test]
    fn what_could_not_be_noted_was_not_handed_out() {
        let (mut window, mut number) = (filled(0, 3), 0);
        window.note(2);
        window.not_noted();
        assert_eq!(hand_out(&mut window, 2, &mut number), [(1, 0, 1), (2, 1, 1)]);
    }

    #[test]
    fn a_number_that_is_not_out_settles_nothing() {
        let (mut window, mut number) = (filled(0, 1), 0);
        hand_out(&mut window, 1, &mut number);
        window.done(7);
        window.again(7, None, true);
        assert_eq!(window.out(), 1);
    }

    #[test]
    fn what_is_not_wanted_is_done_in_its_turn() {
        let mut window = Window::new(0, "");
        window.arrived(0, 0, true);
        window.arrived(1, 1, false);
        assert!(window.is_changed());
        assert_eq!(window.note(0), (0, "sluice-1 2 0:0".to_owned()));
    }

    #[test]
    fn what_the_broker_has_dropped_is_done() {
        let mut window = Window::new(500, "sluice-1 4 0:1 2:1 3:0");
        window.arrived(502, 502, true);
        assert!(window.is_changed());
        assert_eq!(window.note(0), (502, "sluice-1 2 0:1 1:0".to_owned()));
        window.arrived(700, 700, true);
        assert_eq!(hand_out(&mut window, 9, &mut 0), [(1, 502, 2), (2, 700, 1)]);
        assert_eq!(window.note(0), (502, "sluice-1 199 0:2 198:1".to_owned()));
    }

    #[test]
    fn a_text_of_somebody_else_says_nothing() {
        for text in ["", "x", "sluice-1", "sluice-1 -1", "sluice-1 3 1", "sluice-1 3 1:x", "sluice-2 3 1:1"] {
            let mut window = Window::new(5, text);
            window.arrived(5, 5, true);
            assert_eq!(hand_out(&mut window, 1, &mut 0), [(1, 5, 1)], "{text}");
        }
    }

    #[test]
    fn the_text_is_short_whatever_is_out() {
        let (mut window, mut number) = (filled(1_000_000_000, 1_000_000_128), 0);
        for offset in 1_000_000_128..1_000_100_000 {
            window.arrived(offset, offset, offset % 1_000 == 0);
        }
        hand_out(&mut window, 128, &mut number);
        // The broker takes 4,096 bytes.
        assert!(window.text().len() < 3_000, "{}", window.text().len());
    }
}
