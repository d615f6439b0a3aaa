//! Each bit of a small file in turn, as a disk may flip it.

use super::*;

/// Blocks that are written, behind the engine's header.
const WRITTEN: Range<u64> = 1..4;

/// What the file answers: the engine's header, each block, and which are reported as damaged.
#[derive(Debug, PartialEq, Eq)]
struct Answers {
    header: [u8; ENGINE_HEADER_BYTES],
    blocks: Vec<Vec<u8>>,
    damaged: Vec<u64>,
}

fn ask(path: &Path) -> Answers {
    let file = Sealed::look(path).unwrap();
    let mut header = [0; ENGINE_HEADER_BYTES];
    file.read(0, &mut header).unwrap();
    let read = |block: u64| {
        let mut out = vec![0; BLOCK];
        file.read(block * BLOCK_BYTES, &mut out).unwrap();
        out
    };
    let blocks = WRITTEN.map(read).collect();
    Answers { header, blocks, damaged: file.check(0, WRITTEN.end).unwrap().damaged }
}

#[test]
fn each_flipped_bit_of_a_small_file_is_reported_or_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    {
        let file = Sealed::open(&path, &Faults::default()).unwrap();
        file.set_len(WRITTEN.end * BLOCK_BYTES).unwrap();
        let mut header = [7; ENGINE_HEADER_BYTES];
        header[..ENGINE_MAGIC.len()].copy_from_slice(ENGINE_MAGIC);
        file.write(0, &header).unwrap();
        for block in WRITTEN {
            let content: Vec<u8> = (0..BLOCK as u64).map(|at| (at * (2 * block + 1) % 251) as u8).collect();
            file.write(block * BLOCK_BYTES, &content).unwrap();
        }
        file.flush().unwrap();
        file.sync().unwrap();
    }
    let sound = ask(&path);
    assert_eq!(sound.damaged, [0; 0]);
    let whole = std::fs::read(&path).unwrap();
    let raw = OpenOptions::new().write(true).open(&path).unwrap();
    let mut nowhere = vec![0; BLOCK];
    lead_nowhere(&mut nowhere);
    let mut reported = 0;
    for (at, byte) in (0..).zip(&whole) {
        for bit in 0..8 {
            raw.write_all_at(&[byte ^ 1 << bit], at).unwrap();
            let told = ask(&path);
            assert_eq!(told.header, sound.header, "bit {bit} of byte {at}");
            for (block, (now, before)) in WRITTEN.zip(told.blocks.iter().zip(&sound.blocks)) {
                let is_reported = told.damaged.contains(&block);
                let expected = if is_reported { &nowhere } else { before };
                assert!(now == expected, "bit {bit} of byte {at}: block {block}");
                assert!(is_reported || at < place(block) || at >= place(block) + BLOCK_BYTES, "byte {at}");
            }
            reported += usize::from(!told.damaged.is_empty());
        }
        raw.write_all_at(&[*byte], at).unwrap();
    }
    assert_eq!(ask(&path), sound);
    // All of the blocks, both heads and the checksums of the blocks; what else there is holds nothing.
    let telling = WRITTEN.count() * (BLOCK + SUM_BYTES) + 2 * HEAD_BYTES;
    assert_eq!(reported, telling * 8, "of {} bytes", whole.len());
}
