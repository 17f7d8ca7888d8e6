#define BOOST_TEST_MODULE tensor_difference
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <limits>

#include "app/analysis/tensor_difference.hpp"
#include "tests/scratch.hpp"

namespace {

using namespace cpstep;
using cpstep::test::Folder;

using Values = std::vector<double>;

/// A file with /g: "log_probs" of `values`, "gradients/w" of twice them, and an attribute "loss".
H5File file_of(std::filesystem::path const& path, Values const& values, double loss) {
    H5File file = H5File::create(path);
    auto const size = static_cast<std::int64_t>(values.size());
    Values twice = values;
    for (double& value : twice) {
        value *= 2;
    }
    file.write("/g/log_probs", std::span<double const>(values), {size}, "nat");
    file.write("/g/gradients/w", std::span<double const>(twice), {size / 2, 2}, "1");
    file.attribute("/g", "loss", loss);
    file.close();
    return H5File::open(path);
}

std::vector<TensorDifference> differences(Values const& a, Values const& b) {
    Folder const folder;
    H5File const file_a = file_of(folder.path / "a.h5", a, 1.0);
    H5File const file_b = file_of(folder.path / "b.h5", b, 1.5);
    return tensor_differences({file_a, "/g"}, {file_b, "/g"});
}

}  // namespace

BOOST_AUTO_TEST_CASE(steps_of_float_are_counted_through_zero) {
    float const least = std::numeric_limits<float>::denorm_min();
    BOOST_TEST(ulp_distance(1.0F, 1.0F) == 0);
    BOOST_TEST(ulp_distance(0.0F, -0.0F) == 0);
    BOOST_TEST(ulp_distance(1.0F, std::nextafter(1.0F, 2.0F)) == 1);
    BOOST_TEST(ulp_distance(-1.0F, std::nextafter(-1.0F, 0.0F)) == 1);
    BOOST_TEST(ulp_distance(-least, least) == 2);
    BOOST_TEST(ulp_distance(1.0F, 2.0F) == std::int64_t{1} << 23);
}

BOOST_AUTO_TEST_CASE(differences_are_those_computed_by_hand) {
    auto const rows = differences({3, 4, 0, 0}, {3, 4.5, 0, 0});
    BOOST_REQUIRE_EQUAL(rows.size(), 3U);
    TensorDifference const& loss = rows[0];
    BOOST_TEST(loss.name == "@loss");
    BOOST_TEST((loss.a == 1.0 && loss.b == 1.5 && loss.judged == 0.5));
    TensorDifference const& weights = rows[1];
    BOOST_TEST(weights.name == "gradients/w");
    BOOST_TEST(weights.where == "[0, 1]");
    BOOST_TEST(weights.max_abs == 1.0);
    BOOST_TEST(std::abs(weights.rel_l2 - 0.1) < 1e-15);  // 1 / |(6, 8)|
    BOOST_TEST(weights.judged == weights.rel_l2);
    TensorDifference const& values = rows[2];
    BOOST_TEST(values.values == 4);
    BOOST_TEST(values.where == "[1]");
    BOOST_TEST(values.judged == 0.5 / 4);
    BOOST_TEST((values.a == 4.0 && values.b == 4.5 && values.fault.empty()));
}

BOOST_AUTO_TEST_CASE(nan_and_unequal_sizes_are_faults) {
    double const nan = std::numeric_limits<double>::quiet_NaN();
    for (auto const& row : differences({1, nan, 2, 3}, {1, nan, 2, 3})) {
        bool const tensor = row.name != "@loss";
        BOOST_TEST(row.nonfinite == tensor);
        BOOST_TEST((!tensor || (std::isnan(row.judged) && !row.fault.empty())));
    }
    auto const rows = differences({1, 2, 3, 4}, {1, 2});
    BOOST_TEST(rows[2].fault == "sizes [4] and [2]");
}

BOOST_AUTO_TEST_CASE(a_gradient_that_appears_from_nothing_is_infinitely_far) {
    BOOST_TEST(std::isinf(differences({0, 0}, {0, 1e-9})[1].judged));
    BOOST_TEST(differences({0, 0}, {0, 0})[1].judged == 0.0);
}
