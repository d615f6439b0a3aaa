//! The tree of a web page, in time and memory that grow with the page and with nothing else.
//!
//! The parser follows the HTML standard, which lets a small page ask for work without end: for each element it looks through
//! all that are open, it repeats open formatting in every paragraph, and it moves what is misplaced in a table one by one.
//! So elements that are nested too deep, or are too many, are left out of the tree (their text stays), and the tree is kept
//! in a way that makes each move short. What makes the writer of Markdown slow is taken out of the finished tree.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;

use html5ever::interface::{ElementFlags, NodeOrText, QuirksMode, TreeSink};
use html5ever::tendril::StrTendril;
use html5ever::tokenizer::{
    BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
};
use html5ever::tree_builder::{TreeBuilder, TreeBuilderOpts};
use html5ever::{Attribute, ExpandedName, LocalName, QualName, TokenizerResult, local_name, ns};
use markup5ever_rcdom::{Node, NodeData};

/// Elements that may be open at once; browsers stop at 512. The writer of Markdown recurses, and copies at each level.
const OPEN_MAX: usize = 128;
/// Elements of a page.
const ELEMENTS_MAX: usize = 1_000_000;
/// Tags after which the open elements are counted again.
const COUNT_EVERY_TAGS: usize = 32;
/// Elements that the parser opens again in each paragraph until their end.
const FORMATTING: [&str; 14] =
    ["a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"];
/// Elements whose content is not markup. Left out, their content would be read as if it were.
const RAW: [&str; 10] =
    ["iframe", "noembed", "noframes", "noscript", "plaintext", "script", "style", "textarea", "title", "xmp"];
/// Elements that stand by themselves; neighbours of them are never one piece of text.
const BLOCKS: [&str; 66] = [
    "address",
    "article",
    "aside",
    "base",
    "basefont",
    "blockquote",
    "body",
    "caption",
    "center",
    "col",
    "colgroup",
    "dd",
    "details",
    "dialog",
    "dir",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "frame",
    "frameset",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "head",
    "header",
    "hr",
    "html",
    "iframe",
    "legend",
    "li",
    "link",
    "main",
    "menu",
    "menuitem",
    "nav",
    "noframes",
    "ol",
    "optgroup",
    "option",
    "p",
    "param",
    "pre",
    "script",
    "search",
    "section",
    "style",
    "summary",
    "table",
    "tbody",
    "td",
    "textarea",
    "tfoot",
    "th",
    "thead",
    "title",
    "tr",
    "track",
    "ul",
];

/// The tree of a page; never fails, as browsers do not.
pub(super) fn parse(html: &str) -> Rc<Node> {
    let tokenizer = Tokenizer::new(Bounded::default(), TokenizerOpts::default());
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(html));
    while !matches!(tokenizer.feed(&input), TokenizerResult::Done) {}
    tokenizer.end();
    let page = tokenizer.sink.builder.sink.page.clone();
    untangle(&page);
    page
}

/// Between tokenizer and tree builder: leaves out what would make the builder slow.
struct Bounded {
    builder: TreeBuilder<Rc<Node>, Tree>,
    tags: Cell<usize>,
    open: Cell<usize>,
}

impl Default for Bounded {
    fn default() -> Self {
        let builder = TreeBuilder::new(Tree::default(), TreeBuilderOpts::default());
        Self { builder, tags: Cell::new(0), open: Cell::new(0) }
    }
}

impl TokenSink for Bounded {
    type Handle = Rc<Node>;

    fn process_token(&self, mut token: Token, line: u64) -> TokenSinkResult<Self::Handle> {
        match &mut token {
            Token::ParseError(_) | Token::CommentToken(_) => return TokenSinkResult::Continue,
            Token::TagToken(tag) => {
                let tags = self.tags.replace(self.tags.get() + 1);
                if tags.is_multiple_of(COUNT_EVERY_TAGS) {
                    self.open.set(self.open_elements());
                }
                if tag.kind == TagKind::StartTag && !self.takes(tag) {
                    return TokenSinkResult::Continue;
                }
            }
            Token::DoctypeToken(_)
            | Token::CharacterTokens(_)
            | Token::NullCharacterToken
            | Token::EOFToken => {}
        }
        self.builder.process_token(token, line)
    }

    fn end(&self) {
        self.builder.end();
    }

    fn adjusted_current_node_present_but_not_in_html_namespace(&self) -> bool {
        self.builder.adjusted_current_node_present_but_not_in_html_namespace()
    }
}

impl Bounded {
    /// Whether the element that a tag begins is to be in the tree.
    fn takes(&self, tag: &mut Tag) -> bool {
        let name: &str = &tag.name;
        // In a picture or a formula these have no content of their own, and nest like others.
        let open_max = if RAW.contains(&name) { OPEN_MAX * 2 } else { OPEN_MAX };
        if self.open.get() > open_max || self.builder.sink.elements.get() > ELEMENTS_MAX {
            return false;
        }
        if FORMATTING.contains(&name) {
            // Of formatting that is the same, only three are opened again; no two with attributes are the same.
            let is_link = |attr: &Attribute| matches!(&*attr.name.local, "href" | "title");
            tag.attrs.retain(|attr| &*tag.name == "a" && is_link(attr));
        }
        true
    }

    fn open_elements(&self) -> usize {
        struct Count(Cell<usize>);
        impl html5ever::interface::Tracer for Count {
            type Handle = Rc<Node>;
            fn trace_handle(&self, _: &Rc<Node>) {
                self.0.set(self.0.get() + 1);
            }
        }
        let count = Count(Cell::new(0));
        self.builder.trace_handles(&count);
        count.0.get()
    }
}

/// The tree while it grows. A node's place among its parent's children is looked for from their end, where the builder works.
struct Tree {
    page: Rc<Node>,
    elements: Cell<usize>,
}

impl Default for Tree {
    fn default() -> Self {
        Self { page: Node::new(NodeData::Document), elements: Cell::new(0) }
    }
}

impl TreeSink for Tree {
    type Handle = Rc<Node>;
    type Output = Rc<Node>;
    type ElemName<'a> = ExpandedName<'a>;

    fn finish(self) -> Rc<Node> {
        self.page
    }

    fn parse_error(&self, _: std::borrow::Cow<'static, str>) {}

    fn get_document(&self) -> Rc<Node> {
        self.page.clone()
    }

    fn elem_name<'a>(&'a self, target: &'a Rc<Node>) -> ExpandedName<'a> {
        match &target.data {
            NodeData::Element { name, .. } => name.expanded(),
            NodeData::Document
            | NodeData::Doctype { .. }
            | NodeData::Text { .. }
            | NodeData::Comment { .. }
            | NodeData::ProcessingInstruction { .. } => {
                unreachable!("the builder asks for names of elements only")
            }
        }
    }

    fn create_element(&self, name: QualName, attrs: Vec<Attribute>, flags: ElementFlags) -> Rc<Node> {
        self.elements.set(self.elements.get() + 1);
        let template = flags.template.then(|| Node::new(NodeData::Document));
        Node::new(NodeData::Element {
            name,
            attrs: RefCell::new(attrs),
            template_contents: RefCell::new(template),
            mathml_annotation_xml_integration_point: flags.mathml_annotation_xml_integration_point,
        })
    }

    fn create_comment(&self, contents: StrTendril) -> Rc<Node> {
        Node::new(NodeData::Comment { contents })
    }

    fn create_pi(&self, _: StrTendril, contents: StrTendril) -> Rc<Node> {
        // HTML has none; the writer of Markdown knows none either.
        Node::new(NodeData::Comment { contents })
    }

    fn append(&self, parent: &Rc<Node>, child: NodeOrText<Rc<Node>>) {
        let end = parent.children.borrow().len();
        insert(parent, end, child);
    }

    fn append_before_sibling(&self, sibling: &Rc<Node>, child: NodeOrText<Rc<Node>>) {
        if let Some((parent, at)) = place(sibling) {
            insert(&parent, at, child);
        }
    }

    fn append_based_on_parent_node(
        &self,
        element: &Rc<Node>,
        previous: &Rc<Node>,
        child: NodeOrText<Rc<Node>>,
    ) {
        if parent(element).is_some() {
            self.append_before_sibling(element, child);
        } else {
            self.append(previous, child);
        }
    }

    fn append_doctype_to_document(&self, _: StrTendril, _: StrTendril, _: StrTendril) {}

    fn get_template_contents(&self, target: &Rc<Node>) -> Rc<Node> {
        match &target.data {
            NodeData::Element { template_contents, .. } => template_contents.borrow().clone(),
            _ => None,
        }
        // The builder asks for them of templates only.
        .unwrap_or_else(|| target.clone())
    }

    fn same_node(&self, a: &Rc<Node>, b: &Rc<Node>) -> bool {
        Rc::ptr_eq(a, b)
    }

    fn set_quirks_mode(&self, _: QuirksMode) {}

    fn add_attrs_if_missing(&self, target: &Rc<Node>, more: Vec<Attribute>) {
        if let NodeData::Element { attrs, .. } = &target.data {
            let mut attrs = attrs.borrow_mut();
            let there: HashSet<QualName> = attrs.iter().map(|attr| attr.name.clone()).collect();
            attrs.extend(more.into_iter().filter(|attr| !there.contains(&attr.name)));
        }
    }

    fn remove_from_parent(&self, target: &Rc<Node>) {
        if let Some((parent, at)) = place(target) {
            parent.children.borrow_mut().remove(at);
            target.parent.set(None);
        }
    }

    fn reparent_children(&self, node: &Rc<Node>, to: &Rc<Node>) {
        let children = std::mem::take(&mut *node.children.borrow_mut());
        for child in &children {
            child.parent.set(Some(Rc::downgrade(to)));
        }
        to.children.borrow_mut().extend(children);
    }

    fn is_mathml_annotation_xml_integration_point(&self, target: &Rc<Node>) -> bool {
        matches!(&target.data, NodeData::Element { mathml_annotation_xml_integration_point: true, .. })
    }
}

fn parent(node: &Rc<Node>) -> Option<Rc<Node>> {
    let parent = node.parent.take();
    node.parent.set(parent.clone());
    parent?.upgrade()
}

/// A node's parent, and where it is among that one's children.
fn place(node: &Rc<Node>) -> Option<(Rc<Node>, usize)> {
    let parent = parent(node)?;
    let at = parent.children.borrow().iter().rposition(|child| Rc::ptr_eq(child, node))?;
    Some((parent, at))
}

/// Puts a node before what is at a place; text joins the text before it.
fn insert(parent: &Rc<Node>, at: usize, child: NodeOrText<Rc<Node>>) {
    let child = match child {
        NodeOrText::AppendNode(child) => child,
        NodeOrText::AppendText(text) => {
            let children = parent.children.borrow();
            let before = at.checked_sub(1).and_then(|before| children.get(before));
            if let Some(NodeData::Text { contents }) = before.map(|node| &node.data) {
                contents.borrow_mut().push_tendril(&text);
                return;
            }
            Node::new(NodeData::Text { contents: RefCell::new(text) })
        }
    };
    child.parent.set(Some(Rc::downgrade(parent)));
    parent.children.borrow_mut().insert(at, child);
}

/// Takes out of a tree what the writer of Markdown would work on again and again: neighbours that are one piece of text, which
/// it joins one by one, and tables in captions of tables, which it reads twice at each level.
fn untangle(page: &Rc<Node>) {
    let mut left = vec![(page.clone(), false)];
    while let Some((node, in_caption)) = left.pop() {
        let mut children = node.children.borrow_mut();
        join(&mut children);
        for child in children.iter_mut() {
            let name = name(child).cloned();
            if in_caption && name == Some(local_name!("table")) {
                *child = as_block(child, &node);
            }
            left.push((child.clone(), in_caption || name == Some(local_name!("caption"))));
        }
    }
}

fn name(node: &Node) -> Option<&LocalName> {
    match &node.data {
        NodeData::Element { name, .. } => Some(&name.local),
        _ => None,
    }
}

/// The same content as a block of its own.
fn as_block(node: &Rc<Node>, parent: &Rc<Node>) -> Rc<Node> {
    let block = Node::new(NodeData::Element {
        name: QualName::new(None, ns!(html), local_name!("div")),
        attrs: RefCell::default(),
        template_contents: RefCell::default(),
        mathml_annotation_xml_integration_point: false,
    });
    let children = std::mem::take(&mut *node.children.borrow_mut());
    for child in &children {
        child.parent.set(Some(Rc::downgrade(&block)));
    }
    block.children.replace(children);
    block.parent.set(Some(Rc::downgrade(parent)));
    block
}

/// Joins neighbours that hold nothing but text and look the same.
fn join(children: &mut Vec<Rc<Node>>) {
    let mut joined: Vec<Rc<Node>> = Vec::with_capacity(children.len());
    for child in children.drain(..) {
        let with = joined.last().filter(|last| look_the_same(last, &child));
        let texts = with.and_then(|with| Some((only_text(with)?, only_text(&child)?)));
        match texts {
            Some((with, text)) => add(&with, &text),
            None => joined.push(child),
        }
    }
    *children = joined;
}

fn only_text(node: &Node) -> Option<Rc<Node>> {
    let children = node.children.borrow();
    let [only] = &children[..] else { return None };
    matches!(only.data, NodeData::Text { .. }).then(|| only.clone())
}

fn add(to: &Node, text: &Node) {
    if let (NodeData::Text { contents: to }, NodeData::Text { contents: text }) = (&to.data, &text.data) {
        to.borrow_mut().push_tendril(&text.borrow());
    }
}

fn look_the_same(a: &Node, b: &Node) -> bool {
    let (
        NodeData::Element { name: a, attrs: a_attrs, .. },
        NodeData::Element { name: b, attrs: b_attrs, .. },
    ) = (&a.data, &b.data)
    else {
        return false;
    };
    /// Two names that mean one thing.
    fn meaning(name: &QualName) -> &str {
        match &*name.local {
            "i" => "em",
            "b" => "strong",
            other => other,
        }
    }
    meaning(a) == meaning(b)
        && a.ns == b.ns
        && &*a.local != "a"
        && !BLOCKS.contains(&&*a.local)
        && *a_attrs.borrow() == *b_attrs.borrow()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The deepest element, and how many there are.
    fn measured(html: &str) -> (usize, usize) {
        let (mut deepest, mut count) = (0, 0);
        // A node that goes takes what is in its children with it, whoever else has them.
        let page = parse(html);
        let mut left = vec![(page.clone(), 0)];
        while let Some((node, depth)) = left.pop() {
            deepest = deepest.max(depth);
            count += usize::from(name(&node).is_some());
            left.extend(node.children.borrow().iter().map(|child| (child.clone(), depth + 1)));
        }
        (deepest, count)
    }

    #[test]
    fn no_element_is_nested_without_end() {
        for start in [
            "<div>",
            "<b>",
            "<font color=red>",
            "<ul><li>",
            "<table><tr><td>",
            "<blockquote>",
            "<svg><g>",
            "<svg><style>",
            "<template>",
            "<span>",
            "<x-y>",
            "<a href=x><b>",
            "<math><mi>",
            "<table><caption>",
            "<dl><dd>",
            "<ruby><rt>",
        ] {
            let (deepest, _) = measured(&start.repeat(20_000));
            assert!((3..OPEN_MAX * 3).contains(&deepest), "{start}: {deepest}");
        }
    }

    #[test]
    fn what_has_different_attributes_each_time_is_not_opened_again_without_end() {
        let bold: String = (0..2_000).map(|at| format!("<b id={at}>")).collect();
        let (_, count) = measured(&format!("{bold}{}", "<p>x".repeat(2_000)));
        assert!(count < 2_000 * 8, "{count}");
    }

    #[test]
    fn a_page_of_very_many_elements_keeps_its_text() {
        let (_, count) = measured(&"<p>x".repeat(ELEMENTS_MAX + 10_000));
        assert!(count < ELEMENTS_MAX + 1_000, "{count}");
    }

    #[test]
    fn neighbours_are_joined_as_the_writer_would() {
        for (html, elements) in [
            ("<b>a</b><strong>b</strong>", 4),
            ("<b>a</b> <b>b</b>", 5),
            ("<a>a</a><a>b</a>", 5),
            ("<p>a<p>b", 5),
        ] {
            assert_eq!(measured(html).1, elements, "{html}");
        }
        let many = "<i>a</i><em>b</em>".repeat(50_000);
        assert_eq!(super::super::to_markdown(&many), format!("*{}*", "ab".repeat(50_000)));
    }

    #[test]
    fn misplaced_content_of_a_table_stands_before_it() {
        let page = format!("<table>{}<tr><td>last</table>", "<i>a</i>first".repeat(50_000));
        let text = super::super::to_markdown(&page);
        assert!(text.starts_with("*a*first*a*first") && text.ends_with("last"), "{}", text.len());
    }

    #[test]
    fn a_table_in_a_caption_is_read_once() {
        let page = format!(
            "{}deep{}",
            "<table><caption>".repeat(40),
            "</caption><thead></thead></table>".repeat(40)
        );
        assert_eq!(super::super::to_markdown(&page).matches("deep").count(), 1);
    }
}
