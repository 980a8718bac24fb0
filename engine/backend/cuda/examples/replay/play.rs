//! Plays a trace against the engine's thread: speakers, who say the next thing a while after they were answered.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use polder_backend::{Sampling, TokenId};
use polder_scheduler::{Claim, EngineHandle, Event, MemberId, Request, RequestId, Sink};

use crate::figures::Seen;
use crate::traffic::Say;

/// Whoever is refused asks again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// One that asks and is answered.
struct Speaker {
    says: Vec<Say>,
    at: usize,
    agent: bool,
    /// The text so far, answers included.
    text: Vec<TokenId>,
    chance: u64,
    present: bool,
    due: Instant,
    running: Option<Running>,
    answered: u32,
}

struct Running {
    id: RequestId,
    /// Tells its events from those of an earlier request.
    number: u64,
    asked: Instant,
    last: Option<Instant>,
    prompt: usize,
}

type Heard = (usize, u64, Instant, Event);

/// All of them, and the engine.
pub(crate) struct Play {
    engine: EngineHandle,
    speakers: Vec<Speaker>,
    hears: Receiver<Heard>,
    tell: Sender<Heard>,
    numbers: u64,
}

impl Play {
    pub(crate) fn new(engine: EngineHandle, says: Vec<Say>) -> Self {
        let mut of: HashMap<String, usize> = HashMap::new();
        let mut speakers: Vec<Speaker> = Vec::new();
        for say in says {
            let at = *of.entry(say.who.clone()).or_insert_with(|| {
                speakers.push(Speaker {
                    says: Vec::new(),
                    at: 0,
                    agent: say.agent,
                    text: Vec::new(),
                    chance: speakers.len() as u64 + 1,
                    present: false,
                    due: Instant::now(),
                    running: None,
                    answered: 0,
                });
                speakers.len() - 1
            });
            speakers[at].says.push(say);
        }
        let (tell, hears) = channel();
        Self { engine, speakers, hears, tell, numbers: 0 }
    }

    /// So many agents are there from now on, and everybody who chats. Whoever leaves is not answered any more.
    pub(crate) fn gather(&mut self, agents: usize) {
        let mut place = 0;
        for speaker in &mut self.speakers {
            let present = !speaker.agent || place < agents;
            place += usize::from(speaker.agent);
            if present && !speaker.present {
                speaker.due = Instant::now() + speaker.pause();
                speaker.answered = 0;
            }
            if !present && let Some(running) = speaker.running.take() {
                self.engine.cancel(running.id);
            }
            speaker.present = present;
        }
    }

    /// Until each agent who is there was answered once, but no longer than this.
    pub(crate) fn warm_up(&mut self, most: Duration) {
        let until = Instant::now() + most;
        while Instant::now() < until
            && self.speakers.iter().any(|s| s.present && s.agent && s.answered == 0)
        {
            self.go_on(Instant::now() + Duration::from_millis(200), &mut Seen::default());
        }
    }

    /// What is seen in so much time.
    pub(crate) fn watch(&mut self, time: Duration, first_bound: f64) -> Seen {
        let agents = self.speakers.iter().filter(|s| s.present && s.agent).count();
        let mut seen = Seen { agents, seconds: time.as_secs_f64(), ..Seen::default() };
        self.go_on(Instant::now() + time, &mut seen);
        // Who still waits, and has waited too long already, was not served well.
        for speaker in &self.speakers {
            if let Some(running) = speaker.running.as_ref().filter(|r| r.last.is_none()) {
                let waited = running.asked.elapsed().as_secs_f64();
                if waited > first_bound {
                    match speaker.agent {
                        true => seen.agent_first.push(waited),
                        false => seen.chat_first.push(waited),
                    }
                }
            }
        }
        seen
    }

    fn go_on(&mut self, until: Instant, seen: &mut Seen) {
        loop {
            let now = Instant::now();
            let mut next = until;
            for at in 0..self.speakers.len() {
                let speaker = &self.speakers[at];
                if !speaker.present || speaker.running.is_some() {
                    continue;
                }
                if speaker.due <= now {
                    self.ask(at);
                } else {
                    next = next.min(speaker.due);
                }
            }
            if now >= until {
                return;
            }
            if let Ok(heard) = self.hears.recv_timeout(next.saturating_duration_since(now)) {
                self.hear(heard, seen);
                while let Ok(heard) = self.hears.try_recv() {
                    self.hear(heard, seen);
                }
            }
        }
    }

    fn ask(&mut self, at: usize) {
        self.numbers += 1;
        let number = self.numbers;
        let speaker = &mut self.speakers[at];
        speaker.say();
        let say = &speaker.says[speaker.at];
        let request = Request {
            member: MemberId::new(say.member.as_str()),
            claim: Claim::default(),
            prompt: speaker.text.clone(),
            max_tokens: say.answer,
            stop_tokens: [].into(),
            sampling: Sampling::greedy(),
            prompt_logprobs: None,
            grammar: None,
            pooling: None,
        };
        let tell = self.tell.clone();
        let sink: Box<dyn Sink> =
            Box::new(move |event| tell.send((at, number, Instant::now(), event)).is_ok());
        let asked = Instant::now();
        let prompt = request.prompt.len();
        let id = self.engine.submit(vec![(request, sink)])[0];
        speaker.running = Some(Running { id, number, asked, last: None, prompt });
    }

    fn hear(&mut self, (at, number, when, event): Heard, seen: &mut Seen) {
        let speaker = &mut self.speakers[at];
        let Some(running) = speaker.running.as_mut().filter(|r| r.number == number) else { return };
        match event {
            Event::Queued => {}
            Event::Begun { cached } => {
                if speaker.agent {
                    seen.asked += running.prompt as u64;
                    seen.known += u64::from(cached);
                }
            }
            Event::Token(token) => {
                let (firsts, gaps) = match speaker.agent {
                    true => (&mut seen.agent_first, &mut seen.agent_gaps),
                    false => (&mut seen.chat_first, &mut seen.chat_gaps),
                };
                match running.last.replace(when) {
                    None => firsts.push((when - running.asked).as_secs_f64()),
                    Some(before) => gaps.push((when - before).as_secs_f64()),
                }
                speaker.text.push(token.token);
            }
            Event::Finished { .. } => {
                seen.calls += u64::from(speaker.agent);
                speaker.answered += 1;
                speaker.running = None;
                speaker.at = (speaker.at + 1) % speaker.says.len();
                speaker.due = when + speaker.pause();
            }
            Event::Refused(why) => {
                seen.refused += 1;
                eprintln!("refused: {why}");
                let new = speaker.says[speaker.at].new as usize;
                speaker.text.truncate(running.prompt - new);
                speaker.running = None;
                speaker.due = when + AGAIN;
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Speaker {
    fn pause(&self) -> Duration {
        Duration::from_millis(self.says[self.at].pause_ms.into())
    }

    /// Adds what is said next to the text.
    fn say(&mut self) {
        let Say { opens, new, agent, .. } = self.says[self.at];
        if let Some(common) = opens {
            let mut chance = if agent { 1 << 40 } else { 1 << 41 };
            self.text = (0..common).map(|_| draw(&mut chance)).collect();
        }
        for _ in 0..new {
            self.text.push(draw(&mut self.chance));
        }
    }
}

fn draw(chance: &mut u64) -> TokenId {
    *chance =
        chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    TokenId((*chance >> 33) as u32 % 150_000)
}
