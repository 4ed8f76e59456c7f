"""The simulated programs: what each answers, by hand. Every text here is one a model has been shown by the official."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunesmith.errors import DataError
from tunesmith.evaluate.bfcl.multi_turn.long_context import stand_in
from tunesmith.evaluate.bfcl.multi_turn.world import PROGRAMS, Scene, World, methods_of


def world(program: str, state: dict[str, Any] | None = None, *, is_long: bool = False) -> World:
    item = {"id": "multi_turn_base_0", "involved_classes": [program], "initial_config": {program: state or {}}}
    return Scene(item, stand_in() if is_long else None).world("model")


def said(program: World, call: str) -> Any:
    """Return a call's result, read as JSON where it is that."""
    (result,) = program.run([call])
    try:
        return json.loads(result)
    except ValueError:
        return result


def state(program: World, name: str, attribute: str) -> Any:
    return program.state()[name][attribute]


FILES = {
    "root": {
        "home": {
            "type": "directory",
            "contents": {
                "notes.txt": {"type": "file", "content": "pear\napple pie\nfig"},
                "copy.txt": {"type": "file", "content": "pear\napple\nfig"},
                ".hidden": {"type": "file", "content": ""},
                "old": {"type": "directory", "contents": {"a.txt": {"type": "file", "content": "é"}}},
                "empty": {"type": "directory", "contents": {}},
            },
        }
    }
}


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("pwd()", {"current_working_directory": "/home"}),
        ("ls()", {"current_directory_content": ["notes.txt", "copy.txt", "old", "empty"]}),
        ("ls(a=True)", {"current_directory_content": ["notes.txt", "copy.txt", ".hidden", "old", "empty"]}),
        ("cd('old/')", {"current_working_directory": "old"}),
        ("cd(folder='old/a')", {"error": "cd: old/a: Unsupported path. Only one folder level at a time is supported."}),
        ("cd('..')", {"error": "Current directory is already the root. Cannot go back."}),
        ("cd('notes.txt')", {"error": "cd: 'notes.txt': No such file or directory"}),
        ("mkdir('new')", "None"),
        ("mkdir('a:b')", {"error": "mkdir: cannot create directory 'a:b': Invalid character"}),
        ("touch('notes.txt')", {"error": "touch: cannot touch 'notes.txt': File exists"}),
        ("echo('hello')", {"terminal_output": "hello"}),
        ("echo('hello', 'none.txt')", {"error": "echo: cannot write to 'none.txt': No such file"}),
        ("echo('hello', 'old')", "Error during execution: 'Directory' object has no attribute '_write'"),
        ("cat('notes.txt')", {"file_content": "pear\napple pie\nfig"}),
        ("cat('old')", {"error": "cat: 'old': Is a directory"}),
        ("find(name='a')", {"matches": ["./old/a.txt"]}),
        ("find('/old', 'txt')", {"matches": ["/old/a.txt"]}),
        ("find('nowhere')", {"error": "find: 'nowhere': No such file or directory"}),
        ("wc('notes.txt')", {"count": 3, "type": "lines"}),
        ("wc('notes.txt', 'w')", {"count": 4, "type": "words"}),
        ("wc('notes.txt', 'c')", {"count": 18, "type": "characters"}),
        ("wc('notes.txt', 'x')", {"error": "wc: invalid mode 'x'"}),
        ("sort('notes.txt')", {"sorted_content": "apple pie\nfig\npear"}),
        ("grep('notes.txt', 'p')", {"matching_lines": ["pear", "apple pie"]}),
        ("grep('old', 'p')", {"error": "grep: old: No such file or directory"}),
        ("du()", {"disk_usage": "34 bytes"}),
        ("du(human_readable=True)", {"disk_usage": "34.00 B"}),
        ("tail('notes.txt', 2)", {"last_lines": "apple pie\nfig"}),
        ("tail('notes.txt', 0)", {"last_lines": "pear\napple pie\nfig"}),
        ("diff('notes.txt', 'copy.txt')", {"diff_lines": "- apple pie\n+ apple"}),
        ("mv('notes.txt', 'old')", {"result": "'notes.txt' moved to 'old/notes.txt'"}),
        ("mv('notes.txt', 'b.txt')", {"result": "'notes.txt' moved to 'b.txt'"}),
        ("mv('old', 'notes.txt')", {"error": "mv: cannot move 'old' to 'notes.txt': Not a directory"}),
        ("cp('old', 'empty')", {"result": "'old' copied to 'empty/old'"}),
        (
            "cp('old', '/tmp')",
            {"error": "cp: path not allowed in destination. Provide only a file or directory name."},
        ),
        ("rm('old')", {"result": "'old' removed"}),
        ("rmdir('old')", {"error": "rmdir: cannot remove 'old': Directory not empty"}),
        ("rmdir('empty')", {"result": "'empty' removed"}),
        ("cd(dir='old')", "Error during execution: GorillaFileSystem.cd() got an unexpected keyword argument 'dir'"),
        (
            "cd()",
            "Error during execution: GorillaFileSystem.cd() missing 1 required positional argument: 'folder'",
        ),
    ],
)
def test_file_system(call: str, result: Any) -> None:
    assert said(world("GorillaFileSystem", FILES), call) == result


def test_a_copied_directory_shares_its_files_and_a_moved_one_forgets_its_place() -> None:
    program = world("GorillaFileSystem", FILES)
    program.run(["cp('old', 'twin')", "cd('twin')", "echo('new', 'a.txt')", "cd('..')", "cd('old')"])
    assert said(program, "cat('a.txt')") == {"file_content": "new"}
    program = world("GorillaFileSystem", FILES)
    program.run(["cd('old')", "mkdir('inner')", "cd('..')", "mv('old', 'empty')", "cd('empty')", "cd('old')"])
    program.run(["cd('inner')"])
    assert said(program, "pwd()") == {"current_working_directory": "/home/old/inner"}  # not /home/empty/old/inner


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("logarithm(8, 2, 10)", "{'result': mpf('3.000000000029')}"),
        ("logarithm(10, 1, 5)", {"error": ""}),
        ("mean([1, 2, 6])", {"result": 3.0}),
        ("mean([])", {"error": "Cannot calculate mean of an empty list"}),
        ("mean(['a'])", {"error": "All elements in the list must be numbers"}),
        ("standard_deviation([2, 4, 4, 4, 5, 5, 7, 9])", {"result": 2.0}),
        ("si_unit_conversion(5, 'km', 'cm')", {"result": 500000.0}),
        ("si_unit_conversion(5, 'km', 'ft')", {"error": "Conversion from 'km' to 'ft' is not supported"}),
        ("imperial_si_conversion(100, 'celsius', 'fahrenheit')", {"result": 212.0}),
        ("imperial_si_conversion(5, 'x', 'x')", {"result": 5}),
        ("imperial_si_conversion('5', 'm', 'ft')", {"error": "Value must be a number"}),
        ("add(a=1, b=2.5)", {"result": 3.5}),
        ("add(a=1, b='2')", {"error": "Both inputs must be numbers"}),
        ("subtract(5, 7)", {"result": -2}),
        ("multiply(True, 3)", {"result": 3}),
        ("multiply('a', 3)", {"error": "Both inputs must be numbers"}),
        ("divide(1, 0)", {"error": "Cannot divide by zero"}),
        ("divide(1, 4)", {"result": 0.25}),
        ("power(2, 10)", {"result": 1024}),
        ("power(-8, 0.5)", "{'result': (1.7319121124709868e-16+2.8284271247461903j)}"),
        ("square_root(2, 5)", "{'result': Decimal('1.4142')}"),
        ("square_root(-2, 5)", {"error": "Cannot calculate square root of a negative number"}),
        ("square_root(2, 0)", "Error during execution: valid range for prec is [1, MAX_PREC]"),
        ("absolute_value(-3)", {"result": 3}),
        ("round_number(2.675, 2)", {"result": 2.67}),
        ("round_number(15, -1)", {"result": 20}),
        ("round_number(15, -10)", {"result": 0}),
        ("percentage(1, 8)", {"result": 12.5}),
        ("min_value([3, 1])", {"result": 1}),
        ("max_value([3, 1])", {"result": 3}),
        ("sum_values([0.1, 0.2])", {"result": 0.30000000000000004}),
    ],
)
def test_calculator(call: str, result: Any) -> None:
    assert said(world("MathAPI"), call) == result


def test_messages() -> None:
    program = world("MessageAPI", {"random_seed": 1, "current_user": None})
    assert said(program, "send_message('USR002', 'hi')") == {"error": "No user is currently logged in."}
    assert said(program, "message_login('USR009')") == {
        "login_status": False,
        "message": "User ID 'USR009' not found.",
    }
    program.run(["message_login('USR001')"])
    assert said(program, "send_message('USR002', 'Hello You')") == {
        "sent_status": True,
        "message_id": {"new_id": 27611},  # random.Random(1).randint(10000, 99999)
        "message": "Message sent to 'USR002' successfully.",
    }
    assert said(program, "search_messages('YOU')")["results"][-1] == {"receiver_id": "USR002", "message": "Hello You"}
    assert said(program, "add_contact('Eve')") == {
        "added_status": True,
        "user_id": "USR005",
        "message": "Contact 'Eve' added successfully.",
    }
    assert said(program, "get_message_stats()") == {"stats": {"received_count": 4, "total_contacts": 3}}
    program.run(["delete_message('USR002')"])
    assert said(program, "view_messages_sent()")["messages"]["USR002"] == ["My name is Alice. I want to connect."]
    assert state(program, "MessageAPI", "message_count") == 4  # deleting does not count down
    assert state(program, "MessageAPI", "generated_ids") == {27611}
    assert said(program, "get_user_id('Zoe')") == {"error": "User 'Zoe' not found in the workspace."}


TWEETS = {
    "username": "ann",
    "password": "pw",
    "tweet_counter": 2,
    "tweets": {"0": {"id": 0, "username": "ann", "content": "Hi", "tags": ["#Fun"], "mentions": []}},
    "comments": {"0": [{"username": "bob", "content": "!"}]},
}


def test_posting() -> None:
    program = world("TwitterAPI", TWEETS)
    assert said(program, "post_tweet('x')") == {"error": "User not authenticated. Please authenticate before posting."}
    assert said(program, "authenticate_twitter('ann', 'no')") == {"authentication_status": False}
    assert said(program, "authenticate_twitter('ann', 'pw')") == {"authentication_status": True}
    posted = {"id": 2, "username": "ann", "content": "x", "tags": ["#a"], "mentions": []}
    assert said(program, "post_tweet('x', ['#a'])") == posted
    assert state(program, "TwitterAPI", "tweet_counter") == 3
    assert said(program, "retweet(0)") == {"retweet_status": "Successfully retweeted"}
    assert said(program, "retweet(0)") == {"retweet_status": "Already retweeted"}
    assert said(program, "get_tweet_comments(0)") == []  # the scenario's are kept under the text "0"
    assert said(program, "comment(0, 'yes')") == {"comment_status": "Comment added successfully"}
    assert program.run(["get_tweet_comments(0)"]) == ["[{'username': 'ann', 'content': 'yes'}]"]
    assert said(program, "mention(0, ['@b'])") == {"mention_status": "Users mentioned successfully"}
    assert said(program, "get_tweet(0)")["mentions"] == ["@b"]
    assert said(program, "follow_user('alice')") == {"follow_status": False}
    assert said(program, "unfollow_user('alice')") == {"unfollow_status": True}
    assert said(program, "list_all_following()") == {"following_list": ["bob"]}
    assert program.run(["search_tweets('#FUN')"])[0].startswith("[{'id': 0")
    assert said(program, "get_user_stats('ann')") == {"tweet_count": 2, "following_count": 1, "retweet_count": 1}


def test_tickets() -> None:
    program = world("TicketAPI")
    assert said(program, "create_ticket('t')") == {"error": "User not authenticated. Please log in to create a ticket."}
    assert said(program, "ticket_login('ann', '')") == {"success": False}
    assert said(program, "ticket_login('ann', 'pw')") == {"success": True}
    assert said(program, "create_ticket('t', priority=6)") == {
        "error": "Invalid priority. Priority must be between 1 and 5."
    }
    ticket = {"id": 1, "title": "t", "description": "d", "status": "Open", "priority": 5, "created_by": "ann"}
    assert said(program, "create_ticket('t', 'd', 5)") == ticket
    assert said(program, "edit_ticket(1, {'colour': 'red'})") == {"error": "Invalid fields for update: colour"}
    assert said(program, "edit_ticket(1, {'priority': 2, 'title': None})") == {
        "status": "Ticket 1 has been updated successfully."
    }
    assert said(program, "resolve_ticket(1, 'done')") == {"status": "Ticket 1 has been resolved successfully."}
    assert said(program, "close_ticket(1)") == {"status": "Ticket 1 has been closed successfully."}
    assert said(program, "close_ticket(1)") == {"error": "Ticket with ID 1 is already closed."}
    assert said(program, "get_ticket(2)") == {"error": "Ticket with ID 2 not found."}
    assert said(program, "get_ticket(1)") == ticket | {"status": "Closed", "priority": 2, "resolution": "done"}
    assert program.run(["get_user_tickets('closed')"])[0].startswith("[{'id': 1")
    assert said(program, "logout()") == {"success": True}
    assert said(program, "logout()") == {"success": False}


def test_trading() -> None:
    program = world("TradingBot", {"random_seed": 3, "market_status": "Open"})
    assert said(program, "get_account_info()") == {
        "error": "User not authenticated. Please log in to view account information."
    }
    assert said(program, "trading_login('a', 'b')") == {"status": "Logged in successfully"}
    assert said(program, "get_current_time()") == {"current_time": "10:30 AM"}
    assert said(program, "get_symbol_by_name('Omega Industries')") == {"symbol": "OMEG"}
    assert said(program, "get_stock_info('NEPT')") == {
        "price": 88.34,
        "percent_change": 0.19,
        "volume": 0.654,
        "MA(5)": 88.21,
        "MA(20)": 88.67,
    }
    assert said(program, "place_order('buy', 'AAPL', 1000, 11)") == {
        "error": "Insufficient funds: required $11000.00 but only $10000.00 available."
    }
    assert said(program, "place_order('Buy', 'AAPL', 100, 5)") == {
        "order_id": 12446,  # which the default state already has: the new order takes its place
        "order_type": "Buy",
        "status": "Pending",
        "price": 100.0,
        "amount": 5,
    }
    assert said(program, "get_order_details(12446)")["status"] == "Open"
    assert said(program, "get_order_details(1)") == {
        "error": "Order with ID 1 not found.Here is the list of orders_id: [12345, 12446]"
    }
    assert said(program, "cancel_order(12345)") == {"error": "Can't cancel order 12345. Order is already completed."}
    assert said(program, "fund_account(500)") == {"status": "Account funded successfully", "new_balance": 10500.0}
    assert said(program, "withdraw_funds(20000)") == {"error": "Insufficient funds for withdrawal."}
    history = said(program, "get_transaction_history()")["transaction_history"]
    assert [(entry["type"], entry["amount"]) for entry in history] == [("deposit", 500)]
    # random.Random(3).randint(0, 86400) is 31190 seconds after half past ten.
    assert history[0]["timestamp"] == "2024-09-01 19:09:50"
    assert said(program, "get_transaction_history(end_date='2024-09-01')") == {"transaction_history": []}
    assert said(program, "get_transaction_history('1 May')").startswith("Error during execution: time data '1 May'")
    assert said(program, "add_to_watchlist('ZETA')") == {"watchlist": ["NVDA", "ZETA"]}
    assert said(program, "remove_stock_from_watchlist('ABC')") == {"error": "Stock ABC not found in watchlist."}
    assert said(program, "get_available_stocks('Automobile')") == {"stock_list": ["TSLA", "F", "GM"]}
    assert said(program, "filter_stocks_by_price(['AAPL', 'GOOG'], 0, 300)") == {"filtered_stocks": ["AAPL"]}
    assert said(program, "notify_price_change(['AAPL', 'GOOG'], 0.2)") == {
        "notification": "Stocks GOOG have significant price changes."
    }


CARDS = {"credit_card_list": {"c1": {"balance": 1000}}, "random_seed": 5}


def test_travel() -> None:
    program = world("TravelAPI", CARDS)
    assert said(program, "register_credit_card('1', '2', '01/30', 'Ann', 3)") == {"error": "Token not initialized"}
    token = said(program, "authenticate_travel('i', 's', 'r', 'read_write', 'Ann', 'Lee')")["access_token"]
    assert token == "753159"  # random.Random(5).randint(100000, 999999)
    assert said(program, "get_flight_cost('SFO', 'LAX', '2024-11-11', 'business')") == {"travel_cost_list": [800.0]}
    assert said(program, "get_flight_cost('LAX', 'SFO', '2024-11-10', 'first')") == {"travel_cost_list": [500.0]}
    assert (
        said(program, "get_flight_cost('LHR', 'SFO', '2024-11-10', 'first')")
        == "Error during execution: No available route for the given airports."
    )
    book = f"book_flight('{token}', 'c1', '2024-11-11', 'SFO', 'LAX', '%s')"
    assert said(program, book % "coach") == {
        "booking_status": False,
        "error": "Invalid travel class. Must be one of {'business', 'economy', 'first'}",
    }
    assert said(program, book % "first") == {"booking_status": False, "error": "Insufficient funds"}
    booked = said(program, book % "business")
    assert booked["booking_status"] and booked["booking_history"] == {}
    assert state(program, "TravelAPI", "credit_card_list")["c1"]["balance"] == 200.0
    assert said(program, f"retrieve_invoice('{token}', '{booked['booking_id']}')")["invoice"]["travel_cost"] == 800.0
    assert said(program, f"purchase_insurance('{token}', 'all', '{booked['booking_id']}', 50, 'c1')")[
        "insurance_status"
    ]
    assert said(program, f"cancel_booking('{token}', '{booked['booking_id']}')") == {"cancel_status": True}
    assert said(program, f"get_credit_card_balance('{token}', 'c1')") == {"card_balance": 950.0}
    assert said(program, f"set_budget_limit('{token}', 5000)") == {"budget_limit": 5000.0}
    assert said(program, book % "economy")["error"] == "Balance is less than budget limit"
    assert said(program, "get_credit_card_balance('no', 'c1')") == {"error": "Invalid access token"}
    assert said(program, "compute_exchange_rate('EUR', 'USD', 10)") == {"exchanged_value": 12.5}
    assert said(program, "compute_exchange_rate('USD', 'RMB', 10)") == {"exchanged_value": 70.0}
    assert said(program, "get_nearest_airport_by_city('Tokyo')") == {"nearest_airport": "HND"}
    assert said(program, "verify_traveler_information('Ann', 'Lee', '1990-01-01', 'US1')") == {
        "verification_status": True
    }
    failure = said(program, "verify_traveler_information('Bo', 'Lee', '1990-01-01', 'US1')")["verification_failure"]
    assert failure == "Cannot book flight information for another user.Expected Ann Lee, got Bo Lee"


def test_vehicle() -> None:
    program = world("VehicleControlAPI", {"doorStatus": {"driver": "locked", "passenger": "unlocked"}, "fuelLevel": 10})
    assert state(program, "VehicleControlAPI", "remainingUnlockedDoors") == 3
    assert said(program, "startEngine('START')") == {
        "error": "All doors must be locked before starting the engine. Here are the unlocked doors: passenger"
    }
    program = world("VehicleControlAPI", {"fuelLevel": 10})
    locked = said(program, "lockDoors(False, ['driver', 'passenger', 'rear_left', 'rear_right'])")
    assert locked == {"lockStatus": "locked", "remainingUnlockedDoors": 0}
    assert said(program, "lockDoors(True, ['boot'])") == "Error during execution: 'boot'"
    assert said(program, "startEngine('START')") == {
        "error": "Brake pedal needs to be pressed when starting the engine."
    }
    assert said(program, "pressBrakePedal(0.5)") == {"brakePedalStatus": "pressed", "brakePedalForce": 500.0}
    assert said(program, "startEngine('START')") == {"error": "Must press the brake fully before starting the engine."}
    program.run(["pressBrakePedal(1)"])
    assert said(program, "startEngine('START')") == {
        "engineState": "running",
        "fuelLevel": 10,
        "batteryVoltage": 12.6,
    }
    assert said(program, "setCruiseControl(63, True, 100)") == {"error": "Invalid speed"}
    assert state(program, "VehicleControlAPI", "distanceToNextVehicle") == 100.0  # set all the same
    assert said(program, "setCruiseControl(65, True, 90)") == {
        "cruiseStatus": "active",
        "currentSpeed": 65.0,
        "distanceToNextVehicle": 90.0,
    }
    assert said(program, "fillFuelTank(41)") == {"error": "Cannot fill gas above the tank capacity."}
    assert said(program, "adjustClimateControl(68, 'fahrenheit')") == {
        "currentACTemperature": 68,
        "climateMode": "auto",
        "humidityLevel": 50.0,
    }
    assert state(program, "VehicleControlAPI", "acTemperature") == 20.0
    assert said(program, "displayCarStatus('brakePedal')") == {
        "brakePedalStatus": "pressed",
        "brakePedalForce": 1000,
    }
    assert said(program, "activateParkingBrake('engage')") == {
        "parkingBrakeStatus": "engaged",
        "_parkingBrakeForce": 500.0,
        "_slopeAngle": 10.0,
    }
    assert said(program, "estimate_distance('62947', '47329')") == {"distance": 1053.0}
    assert said(program, "estimate_distance('1', '2')") == {"error": "distance not found in database."}
    assert said(program, "get_zipcode_based_on_city('Rivermist')") == {"zipcode": "83214"}
    assert said(program, "estimate_drive_feasibility_by_mileage(200)") == {"canDrive": True}
    assert said(program, "estimate_drive_feasibility_by_mileage(201)") == {"canDrive": False}
    assert said(program, "set_navigation(5)") == 'Error during execution: can only concatenate str (not "int") to str'
    assert state(program, "VehicleControlAPI", "destination") == 5
    assert said(program, "check_tire_pressure()")["healthy_tire_pressure"] is True
    assert said(program, "get_outside_temperature_from_weather_com()") == {"error": 404}
    # random.Random(141053).uniform(0.0, 120.0)
    assert said(program, "get_current_speed()") == {"currentSpeed": 111.92365689097284}


def test_long_context_gives_more_to_read_and_the_same_to_do() -> None:
    program = world("GorillaFileSystem", FILES, is_long=True)
    program.run(["cd('empty')"])
    assert "image_1912245706439755759.jpg" in said(program, "ls()")["current_directory_content"]
    program.run(["cd('..')"])
    text = said(program, "cat('copy.txt')")["file_content"]
    assert text.startswith("pear\napple\nfig") and len(text) > 3000
    assert len(said(world("TradingBot", is_long=True), "get_stock_info('AAPL')")["MA(5)"]) == 2000
    assert len(said(world("TravelAPI", is_long=True), "get_all_credit_cards()")["credit_card_list"]) == 22
    assert "metadata" in said(world("VehicleControlAPI", is_long=True), "displayCarStatus('fuel')")


def test_every_public_method_is_one_the_leaderboard_has() -> None:
    numbers = {name: len(methods_of(program)) for name, program in PROGRAMS.items()}
    assert numbers == {
        "GorillaFileSystem": 18,
        "MathAPI": 17,
        "MessageAPI": 10,
        "TwitterAPI": 14,
        "TicketAPI": 9,
        "TradingBot": 20,
        "TravelAPI": 18,
        "VehicleControlAPI": 22,
    }


def test_an_unknown_program_is_told() -> None:
    with pytest.raises(DataError, match="no program 'MemoryAPI'"):
        world("MemoryAPI")


def test_a_state_that_does_not_fit_is_told() -> None:
    with pytest.raises(DataError, match="does not describe a GorillaFileSystem"):
        world("GorillaFileSystem", {"root": {"home": {}}})
