//! Cuts a streamed body into its frames, however the network cut it into pieces: server-sent events, or a JSON value a line.

use std::collections::VecDeque;

/// Bytes of one frame at most; a service that does not stream sends its whole answer as one.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How frames are marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Server-sent events; a frame is an event's data.
    Events,
    /// A frame is a line.
    Lines,
}

/// Bytes in, frames out.
pub(crate) struct Frames {
    framing: Framing,
    line: Vec<u8>,
    /// The data of the event that is being read.
    data: Option<Vec<u8>>,
    /// A line ended with `\r`, so a `\n` that follows belongs to its end.
    after_return: bool,
    is_first_line: bool,
    ready: VecDeque<Vec<u8>>,
}

impl Frames {
    pub(crate) const fn new(framing: Framing) -> Self {
        Self {
            framing,
            line: Vec::new(),
            data: None,
            after_return: false,
            is_first_line: true,
            ready: VecDeque::new(),
        }
    }

    /// Takes a piece of the body.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            self.line.extend_from_slice(part);
            if self.line.len() + self.data.as_ref().map_or(0, Vec::len) > FRAME_BYTES_MAX {
                return Err(format!("a part is longer than {FRAME_BYTES_MAX} bytes"));
            }
            if let Some(end) = rest.first() {
                self.after_return = *end == b'\r';
                self.end_line();
            }
            bytes = rest.get(1..).unwrap_or_default();
        }
        Ok(())
    }

    /// Nothing more comes: what is there counts as ended.
    pub(crate) fn end(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.ready.extend(self.data.take());
    }

    /// The next frame that is complete.
    pub(crate) fn next(&mut self) -> Option<Result<String, String>> {
        let frame = self.ready.pop_front()?;
        Some(String::from_utf8(frame).map_err(|_| "a part is not UTF-8".to_owned()))
    }

    fn end_line(&mut self) {
        let mut line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.is_first_line) && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        match self.framing {
            Framing::Lines => {
                if !line.trim_ascii().is_empty() {
                    self.ready.push_back(line);
                }
            }
            Framing::Events if line.is_empty() => self.ready.extend(self.data.take()),
            Framing::Events => self.field(&line),
        }
    }

    fn field(&mut self, line: &[u8]) {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        // Names, ids and pauses of events say nothing that their data does not; a nameless field is a comment.
        if name != b"data" {
            return;
        }
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &mut self.data {
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            None => self.data = Some(value.to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(framing: Framing, pieces: &[&[u8]]) -> Vec<String> {
        let mut frames = Frames::new(framing);
        for piece in pieces {
            frames.push(piece).unwrap();
        }
        frames.end();
        std::iter::from_fn(|| frames.next()).map(Result::unwrap).collect()
    }

    #[test]
    fn fields_comments_and_marks_are_not_data() {
        let body = "\u{feff}event: a\ndata: 1\nid: 7\n\n: ping\n\ndata\n\ndata:2\r\ndata:  3\rretry: 5\r\r";
        assert_eq!(frames(Framing::Events, &[body.as_bytes()]), ["1", "", "2\n 3"]);
    }

    #[test]
    fn a_body_that_ends_without_a_line_end_still_ends_its_last_frame() {
        assert_eq!(frames(Framing::Events, &[b"data: 1\n\ndata: 2"]), ["1", "2"]);
        assert_eq!(frames(Framing::Lines, &[b"{}\n\n \r\n{\"a\":1}"]), ["{}", "{\"a\":1}"]);
    }

    #[test]
    fn a_frame_that_never_ends_is_an_error_and_broken_text_too() {
        let mut endless = Frames::new(Framing::Lines);
        let piece = vec![b'x'; FRAME_BYTES_MAX / 4];
        assert!((0..5).any(|_| endless.push(&piece).is_err()));
        let mut broken = Frames::new(Framing::Lines);
        broken.push(b"\xff\n").unwrap();
        assert!(broken.next().unwrap().is_err());
    }

    fn line_end() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("\n"), Just("\r\n"), Just("\r")]
    }

    /// Frames, the body that carries them, and where it is cut.
    fn case(framing: Framing) -> impl Strategy<Value = (Vec<String>, Vec<u8>, Vec<usize>)> {
        let text = "[^\r\n\u{feff}]{0,12}";
        let lines = prop::collection::vec((text, prop::bool::ANY), 1..4);
        let frames = prop::collection::vec(lines, 0..6);
        let cuts = prop::collection::vec(0_usize..400, 0..12);
        (frames, line_end(), cuts).prop_map(move |(frames, end, cuts)| {
            let (mut wanted, mut body) = (Vec::new(), String::new());
            for lines in frames {
                match framing {
                    Framing::Lines => {
                        let (text, _) = &lines[0];
                        wanted.extend((!text.as_bytes().trim_ascii().is_empty()).then(|| text.clone()));
                        body.push_str(&format!("{text}{end}"));
                    }
                    Framing::Events => {
                        let data: Vec<&str> = lines.iter().map(|(text, _)| text.as_str()).collect();
                        wanted.push(data.join("\n"));
                        for (text, has_comment) in &lines {
                            let comment = if *has_comment { format!(": {text}{end}") } else { String::new() };
                            body.push_str(&format!("{comment}data: {text}{end}"));
                        }
                        body.push_str(end);
                    }
                }
            }
            (wanted, body.into_bytes(), cuts)
        })
    }

    fn cut<'a>(body: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut borders: Vec<usize> = cuts.iter().map(|at| at % (body.len() + 1)).collect();
        borders.extend([0, body.len()]);
        borders.sort_unstable();
        borders.windows(2).map(|pair| &body[pair[0]..pair[1]]).collect()
    }

    proptest! {
        #[test]
        fn events_are_the_same_wherever_the_body_is_cut((wanted, body, cuts) in case(Framing::Events)) {
            prop_assert_eq!(frames(Framing::Events, &cut(&body, &cuts)), wanted.clone());
            let bytes: Vec<&[u8]> = body.chunks(1).collect();
            prop_assert_eq!(frames(Framing::Events, &bytes), wanted);
        }

        #[test]
        fn lines_are_the_same_wherever_the_body_is_cut((wanted, body, cuts) in case(Framing::Lines)) {
            prop_assert_eq!(frames(Framing::Lines, &cut(&body, &cuts)), wanted);
        }
    }
}
