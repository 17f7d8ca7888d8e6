#define BOOST_TEST_MODULE options_variants
#include <boost/test/unit_test.hpp>
#include <string>

#include "app/options.hpp"
#include "options_fixture.hpp"

namespace {

using namespace cpstep;
using namespace cpstep::test;

std::vector<std::string> names_of(Options const& options) {
    std::vector<std::string> names;
    for (NamedVariant const& variant : options.variants) {
        names.push_back(variant.name);
    }
    return names;
}

using Names = std::vector<std::string>;

ResolvedValue variant_of(Options const& options) {
    return options.resolved.at("variant");
}

}  // namespace

BOOST_AUTO_TEST_CASE(lists_have_the_defaults_of_the_trainer) {
    Options const o = parse(with());
    BOOST_TEST((o.cp_comm_type == std::vector{CpMethod::p2p}));
    BOOST_TEST((o.cp_loss_comm == std::vector{LossComm::scalar}));
    BOOST_TEST((o.cp_layout == std::vector{CpLayout::zigzag}));
    BOOST_TEST((!o.hierarchical && o.variants.empty()));
    BOOST_TEST(o.resolved.at("cp-comm-type").value == "p2p");
    BOOST_TEST(o.resolved.at("cp-loss-comm").value == "scalar");
    BOOST_TEST(o.resolved.at("cp-layout").value == "zigzag");
    BOOST_TEST(variant_of(o).value.empty());
}

BOOST_AUTO_TEST_CASE(lists_keep_their_order) {
    Options const o = parse(with({"--cp-comm-type", "a2a+p2p,a2a,p2p,all_gather", "--cp-loss-comm",
                                  "gather,scalar,padded", "--cp-layout", "contiguous,zigzag"}));
    BOOST_TEST((o.cp_comm_type == std::vector{CpMethod::a2a_p2p, CpMethod::a2a, CpMethod::p2p,
                                              CpMethod::all_gather}));
    BOOST_TEST(
        (o.cp_loss_comm == std::vector{LossComm::gather, LossComm::scalar, LossComm::padded}));
    BOOST_TEST((o.cp_layout == std::vector{CpLayout::contiguous, CpLayout::zigzag}));
    BOOST_TEST(o.resolved.at("cp-comm-type").value == "a2a+p2p,a2a,p2p,all_gather");
    Options const e = parse(with(), {{"CPSTEP_CP_COMM_TYPE", "all_gather"}});
    BOOST_TEST((e.cp_comm_type == std::vector{CpMethod::all_gather}));
}

BOOST_AUTO_TEST_CASE(lists_refuse_what_they_do_not_know_and_what_is_there_twice) {
    expect(refused({"--cp-comm-type", "p2p,ring"}),
           "--cp-comm-type: 'ring' is not available; choose from: p2p, all_gather, a2a, a2a+p2p");
    expect(refused({"--cp-loss-comm", "sum"}),
           "--cp-loss-comm: 'sum' is not available; choose from: scalar, padded, gather");
    expect(refused({"--cp-layout", "striped"}),
           "--cp-layout: 'striped' is not available; choose from: zigzag, contiguous");
    expect(refused({"--cp-comm-type", "a2a,p2p,a2a"}),
           "--cp-comm-type: 'a2a,p2p,a2a' names a2a twice");
    expect(refused({"--cp-loss-comm", "padded,padded"}), "names padded twice");
    expect(refused({"--cp-layout", "zigzag,zigzag"}), "names zigzag twice");
    expect(refused({"--cp-layout", "zigzag,"}), "--cp-layout: 'zigzag,' has an empty item");
    expect(refused({"--cp-layout", "zigzag", "--cp-layout", "zigzag"}),
           "option '--cp-layout' is given twice");
    expect(ini_error("seed = 1\ncp-loss-comm = sum"), "a.ini:2: cp-loss-comm: 'sum' is not");
}

BOOST_AUTO_TEST_CASE(hierarchical_sizes_are_two_words_or_a_list) {
    Arguments const spellings[]{{"--hierarchical-context-parallel-sizes", "2,4"},
                                {"--hierarchical-context-parallel-sizes=2,4"},
                                {"--hierarchical-context-parallel-sizes", "2", "4"},
                                {"--hierarchical-context-parallel-sizes", "2", "4", "--force"}};
    for (Arguments const& spelling : spellings) {
        Options const o = parse(with(spelling));
        BOOST_TEST((o.hierarchical == HierarchicalSizes{2, 4}));
        BOOST_TEST(o.resolved.at("hierarchical-context-parallel-sizes").value == "2,4");
        BOOST_TEST(o.force == (spelling.back() == "--force"));
    }
    Options const e = parse(with(), {{"CPSTEP_HIERARCHICAL_CONTEXT_PARALLEL_SIZES", "3,2"}});
    BOOST_TEST((e.hierarchical == HierarchicalSizes{3, 2}));
    BOOST_TEST(e.hierarchical->product() == 6);
}

BOOST_AUTO_TEST_CASE(hierarchical_sizes_must_be_two_integers_above_one) {
    std::string const option = "--hierarchical-context-parallel-sizes";
    for (auto const* bad : {"2", "2,4,2", "2x4", ""}) {
        expect(refused({option, bad}), option);
    }
    expect(refused({option, "8"}), option + ": '8' is not two factors; write the ranks that");
    expect(refused({option, "8"}), "e.g. 2,4");
    expect(refused({option, "2", "2", "2"}), option + ": '2,2,2' is not two factors");
    expect(refused({option, "1,4"}), option + ": 1 is out of range, it must be in [2, ");
    expect(refused({option, "4,1"}), option + ": 1 is out of range");
    expect(refused({option, "two,4"}), option + ": 'two' is not an integer");
    expect(refused({option, "2,"}), option + ": '' is not an integer");
    expect(refused({option, "--force"}), "'" + option + "' needs a value (A2A,P2P)");
    expect(refused({option}), "'" + option + "' needs a value (A2A,P2P)");
    expect(refused({option, "2,2", option, "2,2"}), "is given twice");
    expect(ini_error("hierarchical-context-parallel-sizes = 2 4"), "a.ini:1: ");
}

BOOST_AUTO_TEST_CASE(a_variant_sets_what_its_keys_say_and_leaves_the_rest_open) {
    Options const o =
        parse(with({"--variant",
                    "all:cp-layout=contiguous,context-parallel-size=8,cp-comm-type=a2a+p2p,"
                    "hierarchical-context-parallel-sizes=2x4,cp-loss-comm=padded",
                    "--variant=plain", "--variant", "ring-4_b.+:context-parallel-size=4"}));
    BOOST_TEST((names_of(o) == Names{"all", "plain", "ring-4_b.+"}));
    NamedVariant const& all = o.variants[0];
    BOOST_TEST((all.size == 8 && all.method == CpMethod::a2a_p2p));
    BOOST_TEST((all.loss == LossComm::padded && all.layout == CpLayout::contiguous));
    BOOST_TEST((all.hierarchical == HierarchicalSizes{2, 4}));
    NamedVariant const& plain = o.variants[1];
    BOOST_TEST((!plain.size && !plain.method && !plain.loss && !plain.layout));
    BOOST_TEST(!plain.hierarchical);
    BOOST_TEST((o.variants[2].size == 4 && !o.variants[2].method));
    BOOST_TEST(variant_of(o).value ==
               "all:context-parallel-size=8,cp-comm-type=a2a+p2p,cp-loss-comm=padded,"
               "cp-layout=contiguous,hierarchical-context-parallel-sizes=2x4;plain;"
               "ring-4_b.+:context-parallel-size=4");
    BOOST_TEST(variant_of(o).where == "command line");
}

BOOST_AUTO_TEST_CASE(equal_variants_under_two_names_are_allowed) {
    Options const o =
        parse(with({"--variant", "a:cp-comm-type=a2a", "--variant", "b:cp-comm-type=a2a"}));
    BOOST_TEST((names_of(o) == Names{"a", "b"}));
}

BOOST_AUTO_TEST_CASE(each_source_spells_several_variants_in_its_own_way) {
    Options const e = parse(with(), {{"CPSTEP_VARIANT", "a:cp-comm-type=a2a;b;c"}});
    BOOST_TEST((names_of(e) == Names{"a", "b", "c"}));
    BOOST_TEST(variant_of(e).where == "CPSTEP_VARIANT");
    IniFolder const folder;
    std::string const file =
        folder.ini("variant = a:cp-comm-type=a2a  ; noise\nseed = 1\nvariant = b\nvariant = c\n");
    Options const f = parse(with({"--config", file}));
    BOOST_TEST((names_of(f) == Names{"a", "b", "c"}));
    BOOST_TEST(variant_of(f).value == variant_of(e).value);
    BOOST_TEST(variant_of(f).where == file + ":1,3,4");
    BOOST_TEST((variant_of(f).origin == Origin::file));
}

BOOST_AUTO_TEST_CASE(a_stronger_source_replaces_all_variants) {
    IniFolder const folder;
    std::string const file = folder.ini("variant = a\nvariant = b\n");
    Environment const environment{{"CPSTEP_VARIANT", "b;c"}};
    Options const two = parse(with({"--config", file}), environment);
    BOOST_TEST((names_of(two) == Names{"b", "c"}));
    BOOST_TEST(variant_of(two).value == "b;c");
    Options const three =
        parse(with({"--config", file, "--variant", "a", "--variant", "d"}), environment);
    BOOST_TEST((names_of(three) == Names{"a", "d"}));
    BOOST_TEST(variant_of(three).value == "a;d");
    BOOST_TEST((variant_of(three).origin == Origin::command_line));
}

BOOST_AUTO_TEST_CASE(names_of_variants_are_checked) {
    std::string const longest(40, 'n');
    BOOST_TEST((names_of(parse(with({"--variant", longest}))) == Names{longest}));
    for (std::string const& bad :
         {longest + "n", std::string("a b"), std::string("a/b"), std::string("."), std::string("-"),
          std::string(":cp-comm-type=a2a"), std::string("cp-comm-type=a2a"), std::string(" a")}) {
        expect(refused({"--variant=" + bad}), "is no name of a variant; write NAME or NAME:key=");
    }
    expect(refused({"--variant", "a b"}), "--variant: 'a b' is no name of a variant");
    expect(refused({"--variant", longest + "n"}), "at most 40 letters, digits and _.+-");
    expect(refused({"--variant", "cp1:cp-comm-type=a2a"}),
           "--variant: the name cp1 is reserved for the baseline");
    expect(refused({"--variant", "cp1"}), "is reserved for the baseline");
    expect(refused({"--variant", "a", "--variant", "b", "--variant", "a:cp-layout=zigzag"}),
           "--variant: two variants have the name a; rename one");
    expect(refused({}, {{"CPSTEP_VARIANT", "a;a"}}), "CPSTEP_VARIANT: two variants have the name");
    expect(ini_error("variant = a\nvariant = b\nvariant = a"),
           "a.ini:3: variant: two variants have the name a");
}

BOOST_AUTO_TEST_CASE(an_empty_variant_is_refused) {
    expect(refused({"--variant", ""}), "--variant");
    expect(refused({"--variant", "a", "--variant", ";"}), "--variant: a variant is empty");
    expect(refused({}, {{"CPSTEP_VARIANT", ""}}), "CPSTEP_VARIANT: a variant is empty");
    expect(refused({}, {{"CPSTEP_VARIANT", "a;;b"}}), "single ';' between variants");
    expect(refused({}, {{"CPSTEP_VARIANT", "a;"}}), "CPSTEP_VARIANT: a variant is empty");
    expect(ini_error("variant ="), "a.ini:1: variant: a variant is empty");
    expect(refused({"--variant"}), "option '--variant' needs a value (NAME[:KEY=VALUE,...])");
    expect(refused({"--variant", "--force"}), "option '--variant' needs a value");
}

BOOST_AUTO_TEST_CASE(keys_of_a_variant_are_checked) {
    auto const error = [](std::string const& keys) { return refused({"--variant", "a:" + keys}); };
    expect(error("cp-com-type=a2a"),
           "--variant: variant a: unknown key 'cp-com-type'; did you mean 'cp-comm-type'?");
    expect(error("cp-size=2"), "unknown key 'cp-size'");
    expect(error("zzzzzzzzzzzz=2"),
           "unknown key 'zzzzzzzzzzzz'; keys are: context-parallel-size, cp-comm-type, "
           "cp-loss-comm, cp-layout, hierarchical-context-parallel-sizes, trace-detail");
    expect(error("lr=1"), "unknown key 'lr'; keys are: ");
    expect(error("cp-comm-type"), "--variant: variant a: 'cp-comm-type' is not of the form key=");
    expect(error("cp-comm-type=a2a,cp-comm-type=p2p"), "variant a: cp-comm-type is given twice");
    expect(error("cp-comm-type=ring"),
           "--variant: variant a: cp-comm-type: 'ring' is not available; choose from: p2p, ");
    expect(error("cp-loss-comm=sum"), "cp-loss-comm: 'sum' is not available; choose from: scalar");
    expect(error("cp-layout="), "cp-layout: '' is not available; choose from: zigzag, contig");
    expect(error(""), "variant a: '' has an empty item");
    expect(error("cp-layout=zigzag,"), "variant a: 'cp-layout=zigzag,' has an empty item");
    expect(error("cp-comm-type=a2a,all_gather"), "variant a: 'all_gather' is not of the form");
    for (auto const* bad : {"0", "-1", "two", "", "1.5", "3000000000"}) {
        expect(error("context-parallel-size=" + std::string(bad)),
               "variant a: context-parallel-size: ");
    }
    std::string const sizes = "hierarchical-context-parallel-sizes";
    for (auto const* bad : {"8", "1x4", "4x1", "2x2x2", "2,4", "x", "2x", "twoxfour"}) {
        expect(error(sizes + "=" + bad), "variant a: " + sizes + ": ");
    }
    expect(error(sizes + "=2,4"),
           "'2' is not two factors; write the ranks that exchange heads, "
           "then those of a ring, e.g. 2x4");
}

BOOST_AUTO_TEST_CASE(an_error_of_a_variant_carries_the_place_of_its_line) {
    expect(ini_error("variant = a\n\nvariant = b:cp-layot=zigzag\nvariant = c\n"),
           "a.ini:3: variant: variant b: unknown key 'cp-layot'; did you mean 'cp-layout'?");
    expect(refused({}, {{"CPSTEP_VARIANT", "a;b:cp-layout=x"}}),
           "CPSTEP_VARIANT: variant b: cp-layout: 'x' is not available");
    // A wrong value counts even where the command line overrides it.
    IniFolder const folder;
    expect(refused({"--variant", "a", "--config", folder.ini("variant = b:x=1")}),
           "a.ini:1: variant: variant b: unknown key 'x'");
}

BOOST_AUTO_TEST_CASE(variants_are_shown_and_compared_between_ranks) {
    Options const o = parse(with({"--variant", "a", "--variant", "b:cp-comm-type=a2a"}));
    expect(describe_options(o), "a;b:cp-comm-type=a2a");
    std::string const more = serialize_options(o);
    std::string const one = serialize_options(parse(with({"--variant", "a"})));
    std::string const none = serialize_options(parse(with()));
    BOOST_TEST(options_difference({more, more}).empty());
    BOOST_TEST(options_difference({none, one, more}) ==
               "variant: (unset) on rank 0; a on rank 1; a;b:cp-comm-type=a2a on rank 2\n");
    // The order of the keys is no difference, the order of the variants is one.
    auto const text = [](std::string const& variants) {
        return serialize_options(parse(with({"--variant", variants})));
    };
    BOOST_TEST(options_difference({text("a:cp-layout=zigzag,cp-comm-type=a2a"),
                                   text("a:cp-comm-type=a2a,cp-layout=zigzag")})
                   .empty());
    BOOST_TEST(!options_difference({text("a;b"), text("b;a")}).empty());
    std::string const list = serialize_options(parse(with({"--cp-layout", "contiguous"})));
    BOOST_TEST(options_difference({none, list}) ==
               "cp-layout: zigzag on rank 0; contiguous on rank 1\n");
}
