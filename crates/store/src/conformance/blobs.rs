//! Promises of blobs.

use bytes::Bytes;

use super::{Works as _, fails};
use crate::{BlobInfo, ErrorKind, Stores};

super::promises![
    small_and_large_content_comes_back_as_it_was,
    a_part_of_content_is_read_without_the_rest,
    content_in_parts_appears_when_it_is_finished,
    an_unfinished_writer_leaves_the_old_content,
    content_is_replaced_and_removed,
    any_text_is_an_id,
    ids_are_listed_in_order_page_by_page,
];

/// Sizes around the places where an implementation may change its way.
const SIZES: &[usize] = &[0, 1, 1000, 64 * 1024, 64 * 1024 + 1, 256 * 1024 + 1, 3_000_000];

fn content(bytes: usize, seed: usize) -> Bytes {
    (0..bytes).map(|n| ((n * 31 + n / 251 + seed) % 256) as u8).collect::<Vec<_>>().into()
}

async fn small_and_large_content_comes_back_as_it_was(stores: Stores) {
    for &bytes in SIZES {
        let id = format!("of-{bytes}");
        stores.blobs.put(&id, content(bytes, 0)).await.works();
        assert_eq!(stores.blobs.size(&id).await.works(), Some(bytes as u64));
        assert!(stores.blobs.get(&id).await.works() == Some(content(bytes, 0)), "{bytes} bytes differ");
    }
    assert_eq!(stores.blobs.get("nothing").await.works(), None);
    assert_eq!(stores.blobs.size("nothing").await.works(), None);
}

async fn a_part_of_content_is_read_without_the_rest(stores: Stores) {
    for bytes in [1000, 3_000_000] {
        let whole = content(bytes, 0);
        stores.blobs.put("a", whole.clone()).await.works();
        for (from, count) in
            [(0, 10), (0, bytes), (500, 100), (bytes - 1, 10), (bytes, 10), (bytes + 5, 10), (7, 0)]
        {
            let part = stores.blobs.get_range("a", from as u64, count as u64).await.works();
            let to = (from + count).min(bytes);
            let expected = whole.slice(from.min(to)..to);
            assert!(part == Some(expected), "{count} bytes from {from} of {bytes} differ");
        }
    }
    assert_eq!(stores.blobs.get_range("nothing", 0, 10).await.works(), None);
}

async fn content_in_parts_appears_when_it_is_finished(stores: Stores) {
    for &bytes in SIZES {
        let whole = content(bytes, 1);
        let mut writer = stores.blobs.writer("a").await.works();
        for part in whole.chunks(100_000) {
            writer.write(Bytes::copy_from_slice(part)).await.works();
        }
        if bytes == SIZES[0] {
            assert_eq!(stores.blobs.size("a").await.works(), None);
        }
        assert_eq!(writer.finish().await.works(), bytes as u64);
        assert!(stores.blobs.get("a").await.works() == Some(whole), "{bytes} bytes differ");
    }
}

async fn an_unfinished_writer_leaves_the_old_content(stores: Stores) {
    stores.blobs.put("a", content(10, 0)).await.works();
    for bytes in [10, 1_000_000] {
        let mut writer = stores.blobs.writer("a").await.works();
        writer.write(content(bytes, 1)).await.works();
        drop(writer);
        assert_eq!(stores.blobs.get("a").await.works(), Some(content(10, 0)));
    }
}

async fn content_is_replaced_and_removed(stores: Stores) {
    for &first in SIZES {
        for second in [10, 100_000] {
            stores.blobs.put("a", content(first, 1)).await.works();
            stores.blobs.put("a", content(second, 2)).await.works();
            assert!(stores.blobs.get("a").await.works() == Some(content(second, 2)), "{first} to {second}");
            stores.blobs.remove("a").await.works();
            assert_eq!(stores.blobs.get("a").await.works(), None);
        }
    }
    stores.blobs.remove("a").await.works();
    stores.blobs.remove("never").await.works();
}

async fn any_text_is_an_id(stores: Stores) {
    let long = "x".repeat(1024);
    let ids = ["../../etc/passwd", "/", ".", "a b\n", "ключ", "urn:x/y?z=1#2", "con", &long];
    for (n, id) in ids.iter().enumerate() {
        stores.blobs.put(id, content(100_000 + n, n)).await.works();
    }
    for (n, id) in ids.iter().enumerate() {
        assert!(stores.blobs.get(id).await.works() == Some(content(100_000 + n, n)), "{id:?} differs");
    }
    for bad in ["", &"x".repeat(1025)] {
        assert_eq!(fails(stores.blobs.put(bad, Bytes::new()).await).kind(), ErrorKind::Refused);
    }
}

async fn ids_are_listed_in_order_page_by_page(stores: Stores) {
    for id in ["b/2", "a", "b/1", "b/3", "c"] {
        stores.blobs.put(id, content(id.len(), 0)).await.works();
    }
    let ids = |entries: Vec<BlobInfo>| entries.into_iter().map(|entry| entry.id).collect::<Vec<_>>();
    let all = stores.blobs.list("", None, 100).await.works();
    assert_eq!(all[0], BlobInfo { id: "a".to_owned(), bytes: 1 });
    assert_eq!(ids(all), ["a", "b/1", "b/2", "b/3", "c"]);
    assert_eq!(ids(stores.blobs.list("b/", None, 2).await.works()), ["b/1", "b/2"]);
    assert_eq!(ids(stores.blobs.list("b/", Some("b/2"), 2).await.works()), ["b/3"]);
}
