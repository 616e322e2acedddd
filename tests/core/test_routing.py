from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revconn.core.routing import LONGEST_SERVICE, Routes, Wanted, lookup_order, split_method_path

names = st.text(st.characters(blacklist_characters="/.", blacklist_categories=["Cs"]), min_size=1)
services = st.lists(names, min_size=1, max_size=4).map(".".join)


@given(services, names, st.sampled_from(["", "/"]))
def test_a_path_splits_into_service_and_method(service: str, method: str, slash: str) -> None:
    assert split_method_path(f"{slash}{service}/{method}") == (service, method)


@pytest.mark.parametrize("path", ["", "/", "a.B", "/a.B", "/a.B/", "//C", "/a/b/C", "//a.B/C"])
def test_a_path_without_one_service_and_one_method_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="expected /package.Service/Method"):
        split_method_path(path)


def test_a_refused_path_is_not_repeated_at_full_length() -> None:
    with pytest.raises(ValueError, match="not a method path") as caught:
        split_method_path("x" * 1_000_000)
    assert len(str(caught.value)) < 300


def test_a_service_is_looked_up_by_its_own_name_and_then_its_parents() -> None:
    assert list(lookup_order("a.b.C")) == ["a.b.C", "a.b", "a"]
    assert list(lookup_order("")) == []


@given(services)
def test_the_lookup_ends_at_the_first_part_of_the_name(service: str) -> None:
    order = list(lookup_order(service))
    assert order[0] == service
    assert order[-1] == service.split(".")[0]
    assert len(order) == service.count(".") + 1


def test_of_an_endless_name_only_the_parents_that_somebody_may_have_are_looked_up() -> None:
    parent = "a." * (LONGEST_SERVICE // 2 - 1) + "bc"
    assert len(parent) == LONGEST_SERVICE
    assert next(lookup_order(parent)) == parent
    assert next(lookup_order(f"{parent}.D")) == parent
    assert next(lookup_order(f"{parent}d.E")) == parent.rpartition(".")[0]
    assert sum(1 for _ in lookup_order("." * 4_000_000)) <= LONGEST_SERVICE
    assert list(lookup_order("a" * (LONGEST_SERVICE + 1))) == []


def test_a_method_is_found_with_and_without_its_first_slash() -> None:
    routes: Routes[str] = Routes()
    routes.add_method("/a.B/C", "handler")
    assert routes.find("/a.B/C") == "handler"
    assert routes.find("a.B/C") == "handler"


def test_a_method_goes_before_the_catch_all_of_its_service() -> None:
    routes: Routes[str] = Routes()
    routes.add_service("a.B", "catch-all")
    routes.add_method("/a.B/C", "method")
    assert routes.find("/a.B/C") == "method"
    assert routes.find("/a.B/Other") == "catch-all"


def test_a_child_of_a_service_falls_to_the_nearest_parents_catch_all() -> None:
    routes: Routes[str] = Routes()
    routes.add_service("a", "far")
    routes.add_service("a.B", "near")
    assert routes.find("/a.B.Child/Do") == "near"
    assert routes.find("/a.Other/Do") == "far"


def test_a_single_method_does_not_answer_for_a_child_service() -> None:
    routes: Routes[str] = Routes()
    routes.add_method("/a.B/C", "handler")
    assert routes.find("/a.B.Child/C") is None


@pytest.mark.parametrize("path", ["/b.X/C", "a.B", "", "/a.B/"])
def test_an_unknown_or_malformed_path_has_no_handler(path: str) -> None:
    routes: Routes[str] = Routes()
    routes.add_service("a.B", "catch-all")
    assert routes.find(path) is None


def test_a_second_handler_for_the_same_method_is_refused() -> None:
    routes: Routes[str] = Routes()
    routes.add_method("/a.B/C", "first")
    with pytest.raises(ValueError, match="a.B/C already has a handler"):
        routes.add_method("a.B/C", "second")
    assert routes.find("/a.B/C") == "first"


def test_a_second_catch_all_for_the_same_service_is_refused() -> None:
    routes: Routes[str] = Routes()
    routes.add_service("a.B", "first")
    with pytest.raises(ValueError, match="a.B already has a handler"):
        routes.add_service("a.B", "second")
    assert routes.find("/a.B/C") == "first"


def test_the_services_are_those_of_methods_and_catch_alls_once_each() -> None:
    routes: Routes[str] = Routes()
    routes.add_method("/z.Z/One", "")
    routes.add_method("/z.Z/Two", "")
    routes.add_service("a.B", "")
    routes.add_service("z.Z", "")
    assert routes.services() == ["a.B", "z.Z"]


def test_routes_are_true_once_they_hold_a_handler() -> None:
    assert not Routes[str]()
    with_method, with_service = Routes[str](), Routes[str]()
    with_method.add_method("/a.B/C", "")
    with_service.add_service("a.B", "")
    assert with_method
    assert with_service


@pytest.mark.parametrize(
    ("service", "names"),
    [
        ("post.PostService", ("post.PostService", "post", "PostService")),
        ("PostService", ("PostService",)),
        ("a.a", ("a.a", "a")),
        ("a.", ("a.", "a")),
        ("", ()),
        ("a." + "b" * LONGEST_SERVICE, ("a",)),
    ],
)
def test_the_last_part_of_a_service_is_tried_last_for_callers_from_outside(
    service: str, names: tuple[str, ...]
) -> None:
    assert Wanted.by_outsider(service) == (service, names)


def test_a_connectors_call_reaches_no_service_outside_the_name_that_it_calls() -> None:
    wanted = Wanted.by_connector("post.PostService")
    assert wanted.names == ("post.PostService", "post")
