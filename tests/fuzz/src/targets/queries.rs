//! The query language: any text is a query, read the same way twice, within its bounds.

use super::{Target, words_of};
use crate::engine::{behaviour, class_of};
use shards::index::analyze::AnalyzerKind;
use shards::index::query::{Ast, BOOST_MAX, CompiledQuery, DEPTH_MAX, QueryField, SLOP_MAX, parse};

/// See the module's head.
pub(super) struct Queries {
    fields: Vec<QueryField>,
}

impl Queries {
    /// The target.
    pub(super) fn new() -> Self {
        let field = |path: &str, analyzer| QueryField { path: path.to_owned(), analyzer };
        let fields = vec![
            field("*", AnalyzerKind::English),
            field("title", AnalyzerKind::Standard),
            field("a.b", AnalyzerKind::Keyword),
        ];
        Self { fields }
    }
}

/// What a tree is made of: nodes, depth, and the kinds met, a bit each.
#[derive(Default)]
struct Shape {
    nodes: usize,
    depth: usize,
    kinds: u64,
}

impl Shape {
    fn take(&mut self, ast: &Ast, depth: usize, text: &str) {
        self.nodes += 1;
        self.depth = self.depth.max(depth);
        let (kind, inside): (u64, &[Ast]) = match ast {
            Ast::Words(words) => {
                assert!(!words.is_empty() || depth == 0 || text.is_empty(), "no empty words inside");
                (1, &[])
            }
            Ast::Phrase { slop, .. } => {
                assert!(*slop <= SLOP_MAX, "slop has a bound");
                (2, &[])
            }
            Ast::Prefix(_) => (4, &[]),
            Ast::Fuzzy { edits, .. } => {
                assert!((1..=2).contains(edits), "one or two edits");
                (8, &[])
            }
            Ast::Field(name, inner) => {
                assert!(!name.is_empty(), "a field has a name");
                (16, std::slice::from_ref(&**inner))
            }
            Ast::Boost(inner, factor) => {
                assert!(factor.is_finite() && (0.0..=BOOST_MAX).contains(factor), "a boost has bounds");
                (32, std::slice::from_ref(&**inner))
            }
            Ast::Bool { must, should, must_not } => {
                for clause in must.iter().chain(must_not) {
                    self.take(clause, depth + 1, text);
                }
                (64 << u64::from(!must_not.is_empty()), should)
            }
        };
        self.kinds |= kind;
        for clause in inside {
            self.take(clause, depth + 1, text);
        }
    }
}

impl Target for Queries {
    fn seeds(&self) -> Vec<Vec<u8>> {
        words_of(&[
            "river boat",
            "\"the river boat\"~2 +must -not",
            "title:river^2 AND (a.b:x OR NOT boat) rive* bota~1 word~",
            "((((a))))",
            "\u{df}\u{130} caf\u{e9} \u{65e5}\u{672c} a\u{301}",
            "a.b:\"x y\"^0.5 +(+x -y) !z",
        ])
    }

    fn words(&self) -> Vec<Vec<u8>> {
        words_of(&[
            " AND ",
            " OR ",
            " NOT ",
            "NOT ",
            "title:",
            "a.b:",
            "\"",
            "~",
            "~1",
            "~2",
            "~9999",
            "^",
            "^2",
            "^1e9",
            "^-1",
            "^nan",
            "(",
            ")",
            "+",
            "-",
            "!",
            "*",
            " ",
            "\u{a0}",
            "\u{2003}",
            "\u{1f600}",
            "river",
            "the",
            "running",
            ":",
            "::",
            "\\",
            "\u{301}",
            "\u{200d}",
            "()",
            "\"\"",
        ])
    }

    fn bytes_max(&self) -> usize {
        400
    }

    fn bytes_usual(&self) -> usize {
        40
    }

    fn run(&mut self, input: &[u8]) -> u64 {
        let text = String::from_utf8_lossy(input);
        let is_field = |name: &str| name == "title" || name == "a.b";
        let ast = parse(&text, &is_field);
        assert_eq!(ast, parse(&text, &is_field), "one text is one query");
        let mut shape = Shape::default();
        shape.take(&ast, 0, &text);
        assert!(shape.depth <= 4 * DEPTH_MAX + 4, "nesting has a bound: {}", shape.depth);
        assert!(shape.nodes <= text.len() + 1, "a query is no larger than its text");
        let names = shards::index::query::parse::field_names(&text);
        assert!(names.len() <= DEPTH_MAX, "names have a bound");
        let compiled = CompiledQuery::new(&ast, &self.fields[..2], &self.fields);
        assert_eq!(compiled, CompiledQuery::new(&ast, &self.fields[..2], &self.fields));
        let paths = compiled.paths().count();
        behaviour(&[shape.kinds, class_of(shape.nodes), shape.depth as u64, names.len() as u64, paths as u64])
    }
}
