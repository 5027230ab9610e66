"""The fixtures themselves: each test has a database of its own, prepared and empty of rows."""

from __future__ import annotations

import psycopg2
import pytest


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_a_prepared_database_of_its_own(
    database_url: str, empty_database_url: str, turn: int
) -> None:
    for url, tables in ((database_url, True), (empty_database_url, False)):
        connection = psycopg2.connect(url.replace("+psycopg2", ""))
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('public.trials') IS NOT NULL")
            assert cursor.fetchone() == (tables,)
            cursor.execute("CREATE TABLE mine (turn int)")
        connection.close()
