"""A travel agency: flights, credit cards, a budget, insurance."""

from __future__ import annotations

import copy
import random
from datetime import datetime
from typing import Any

from tunesmith.evaluate.bfcl.multi_turn.apis.routes import AIRPORTS, FARES, NEAREST_AIRPORTS
from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import Surroundings

_SEED = 141053
_CLASS_FACTORS = {"economy": 1, "business": 2, "first": 5}
_UNITS_PER_DOLLAR = {
    "RMB": 7,
    "EUR": 0.8,
    "JPY": 110,
    "GBP": 0.7,
    "CAD": 1.3,
    "AUD": 1.4,
    "INR": 70,
    "RUB": 60,
    "BRL": 3.8,
    "MXN": 20,
}
_INVOICED = ("travel_date", "travel_from", "travel_to", "travel_class", "travel_cost", "transaction_id")
_EXPIRED = {"error": "Token expired"}
_ADULT_YEARS = 18


class TravelAPI:
    """This tool is a travel agency: it books flights, keeps credit cards and watches a budget."""

    def __init__(self, scenario: dict[str, Any], surroundings: Surroundings) -> None:
        extras = surroundings.long_context
        self._is_long, self._random = extras is not None, random.Random(scenario.get("random_seed", _SEED))
        self.credit_card_list = scenario.get("credit_card_list", {})
        self.booking_record = scenario.get("booking_record", {})
        self.access_token = scenario.get("access_token")
        self.token_type = scenario.get("token_type")
        self.token_expires_in = scenario.get("token_expires_in")
        self.token_scope = scenario.get("token_scope")
        self.user_first_name = scenario.get("user_first_name")
        self.user_last_name = scenario.get("user_last_name")
        self.budget_limit = scenario.get("budget_limit")
        if extras:
            for card_id, card in extras.credit_cards.items():
                self.credit_card_list.setdefault(card_id, card)
            for booking_id, booking in extras.bookings.items():
                self.booking_record.setdefault(booking_id, booking)

    def authenticate_travel(
        self,
        client_id: str,
        client_secret: str,
        refresh_token: str,
        grant_type: str,
        user_first_name: str,
        user_last_name: str,
    ) -> dict[str, Any]:
        """Log in to the travel agency and get an access token.

        Args:
            client_id: ID of the application.
            client_secret: Secret of the application.
            refresh_token: Token of an earlier log-in.
            grant_type: read, write or read_write.
            user_first_name: The user's first name.
            user_last_name: The user's last name.
        """
        self.token_expires_in = 2
        self.access_token = str(self._random.randint(100_000, 999_999))
        self.token_type, self.token_scope = "Bearer", grant_type
        self.user_first_name, self.user_last_name = user_first_name, user_last_name
        return {"expires_in": 2, "access_token": self.access_token, "token_type": "Bearer", "scope": grant_type}

    def travel_get_login_status(self) -> dict[str, Any]:
        """Tell whether the user is logged in to the travel agency."""
        return {"status": not (self.token_expires_in is None or self.token_expires_in == 0)}

    def get_budget_fiscal_year(
        self, lastModifiedAfter: str | None = None, includeRemoved: str | None = None
    ) -> dict[str, Any]:
        """Tell the fiscal year of the budget.

        Args:
            lastModifiedAfter: Only years changed after this moment, YYYY-MM-DDTHH:MM:SS.
            includeRemoved: Whether removed years count.
        """
        return {"budget_fiscal_year": "2018"}

    def register_credit_card(
        self,
        access_token: str,
        card_number: str,
        expiration_date: str,
        cardholder_name: str,
        card_verification_number: int,
    ) -> dict[str, Any]:
        """Register a credit card and get its ID.

        Args:
            access_token: The token from logging in.
            card_number: The number on the card.
            expiration_date: When it expires, MM/YYYY.
            cardholder_name: The name on the card.
            card_verification_number: The number on its back.
        """
        if self.token_expires_in is None:
            return {"error": "Token not initialized"}
        refusal = self._refusal(access_token)
        if refusal:
            return refusal
        if card_number in self.credit_card_list:
            return {"error": "Card already registered"}
        card_id = str(self._random.randint(100_000_000_000, 999_999_999_999))
        self.credit_card_list[card_id] = {
            "card_number": card_number,
            "expiration_date": expiration_date,
            "cardholder_name": cardholder_name,
            "card_verification_number": card_verification_number,
            "balance": self._random.randint(10_000, 99_999),
        }
        return {"card_id": card_id}

    def _refusal(self, access_token: str) -> dict[str, Any]:
        """Return what a wrong or expired token is answered with; nothing for a good one."""
        if self.token_expires_in == 0:
            return dict(_EXPIRED)
        return {} if access_token == self.access_token else {"error": "Invalid access token"}

    def get_flight_cost(self, travel_from: str, travel_to: str, travel_date: str, travel_class: str) -> dict[str, Any]:
        """Tell what a flight costs in US dollars.

        Args:
            travel_from: Code of the airport of departure.
            travel_to: Code of the airport of arrival.
            travel_date: The day, YYYY-MM-DD.
            travel_class: economy, business or first.
        """
        factor = _price_factor(travel_from, travel_to, travel_date, travel_class)
        fares = FARES.values() if self._is_long else [FARES[travel_from, travel_to]]
        return {"travel_cost_list": [float(fare * factor) for fare in fares]}

    def get_credit_card_balance(self, access_token: str, card_id: str) -> dict[str, Any]:
        """Tell the balance of a credit card.

        Args:
            access_token: The token from logging in.
            card_id: The card's ID.
        """
        refusal = self._refusal(access_token)
        if refusal:
            return refusal
        if card_id not in self.credit_card_list:
            known = str(list(self.credit_card_list))
            return {"error": f"Card not registered. Here are a list of card_id's: {known}"}
        return {"card_balance": self.credit_card_list[card_id]["balance"]}

    def book_flight(
        self, access_token: str, card_id: str, travel_date: str, travel_from: str, travel_to: str, travel_class: str
    ) -> dict[str, Any]:
        """Book a flight.

        Args:
            access_token: The token from logging in.
            card_id: ID of the credit card that pays.
            travel_date: The day, YYYY-MM-DD.
            travel_from: Code of the airport of departure.
            travel_to: Code of the airport of arrival.
            travel_class: economy, business or first.
        """
        refusal = self._refusal(access_token) or self._refused_card(card_id)
        refusal = refusal or _refused_flight(travel_date, travel_from, travel_to, travel_class)
        if refusal:
            return {"booking_status": False} | refusal
        try:
            factor = _price_factor(travel_from, travel_to, travel_date, travel_class)
        except ValueError as error:
            return {"booking_status": False, "error": str(error)}
        cost, card = float(FARES[travel_from, travel_to] * factor), self.credit_card_list[card_id]
        if card["balance"] < cost:
            return {"booking_status": False, "error": "Insufficient funds"}
        if self.budget_limit is not None and card["balance"] < self.budget_limit:
            return {"booking_status": False, "error": "Balance is less than budget limit"}
        card["balance"] -= cost
        booking_id = str(self._random.randint(1_000_000, 9_999_999))
        transaction_id = str(self._random.randint(10_000_000, 99_999_999))
        self.booking_record[booking_id] = {
            "card_id": card_id,
            "travel_date": travel_date,
            "travel_from": travel_from,
            "travel_to": travel_to,
            "travel_class": travel_class,
            "travel_cost": cost,
            "transaction_id": transaction_id,
        }
        return {
            "booking_id": booking_id,
            "transaction_id": transaction_id,
            "booking_status": True,
            "booking_history": self.booking_record if self._is_long else {},
        }

    def _refused_card(self, card_id: str) -> dict[str, Any]:
        if card_id not in self.credit_card_list:
            return {"error": "Card not registered"}
        return {} if "balance" in self.credit_card_list[card_id] else {"error": "Balance not found"}

    def retrieve_invoice(
        self, access_token: str, booking_id: str | None = None, insurance_id: str | None = None
    ) -> dict[str, Any]:
        """Show the invoice of a booking.

        Args:
            access_token: The token from logging in.
            booking_id: The booking's ID.
            insurance_id: The insurance's ID.
        """
        refusal = self._refusal(access_token)
        if refusal:
            return refusal
        if booking_id not in self.booking_record:
            return {"error": "Booking not found"}
        booking = self.booking_record[booking_id]
        return {"invoice": {"booking_id": booking_id} | {name: booking[name] for name in _INVOICED}}

    def get_booking_history(self, access_token: str) -> dict[str, Any]:
        """Show all bookings by their ID.

        Args:
            access_token: The token from logging in.
        """
        return self._refusal(access_token) or {"booking_history": copy.deepcopy(self.booking_record)}

    def list_all_airports(self) -> list[str]:
        """List the codes of all airports."""
        return list(AIRPORTS)

    def cancel_booking(self, access_token: str, booking_id: str) -> dict[str, Any]:
        """Cancel a booking; the card gets its money back.

        Args:
            access_token: The token from logging in.
            booking_id: The booking's ID.
        """
        refusal = self._refusal(access_token)
        if not refusal and booking_id not in self.booking_record:
            refusal = {"error": "Booking not found"}
        if refusal:
            return {"cancel_status": False} | refusal
        booking = self.booking_record[booking_id]
        self.credit_card_list[booking["card_id"]]["balance"] += booking["travel_cost"]
        del self.booking_record[booking_id]
        return {"cancel_status": True}

    def compute_exchange_rate(self, base_currency: str, target_currency: str, value: float) -> dict[str, Any]:
        """Convert money between US dollars and another currency.

        Args:
            base_currency: USD, or one of RMB, EUR, JPY, GBP, CAD, AUD, INR, RUB, BRL, MXN.
            target_currency: The currency wanted; one of the two must be USD.
            value: The amount.
        """
        for currency, units in _UNITS_PER_DOLLAR.items():
            if base_currency == "USD" and target_currency == currency:
                return {"exchanged_value": float(value * units)}
            if base_currency == currency and target_currency == "USD":
                return {"exchanged_value": round(value / units, 2)}
        raise ValueError("No available exchange rate for the given currencies.")

    def verify_traveler_information(
        self, first_name: str, last_name: str, date_of_birth: str, passport_number: str
    ) -> dict[str, Any]:
        """Check whether a traveller may be booked for: the user, of age, with a US passport.

        Args:
            first_name: The traveller's first name.
            last_name: The traveller's last name.
            date_of_birth: The traveller's date of birth, YYYY-MM-DD.
            passport_number: Number of the passport; those of the US begin with US.
        """
        reason = ""
        if self.user_first_name != first_name or self.user_last_name != last_name:
            expected = f"{self.user_first_name} {self.user_last_name}"
            # Without a space, as the original has it.
            reason = (
                f"Cannot book flight information for another user.Expected {expected}, got {first_name} {last_name}"
            )
        else:
            try:
                born, today = datetime.strptime(date_of_birth, "%Y-%m-%d"), datetime.today()
            except ValueError:
                reason = "Invalid date of birth format. Please use YYYY-MM-DD."
            else:
                has_birthday_ahead = (today.month, today.day) < (born.month, born.day)
                if today.year - born.year - has_birthday_ahead < _ADULT_YEARS:
                    reason = "Traveler must be at least 18 years old."
                elif not passport_number.startswith("US"):
                    reason = "Passport must be issued by the United States."
        if reason:
            return {"verification_status": False, "verification_failure": reason}
        return {"verification_status": True}

    def set_budget_limit(self, access_token: str, budget_limit: float) -> dict[str, Any]:
        """Set the budget in US dollars.

        Args:
            access_token: The token from logging in.
            budget_limit: The budget.
        """
        refusal = self._refusal(access_token)
        if refusal:
            return refusal
        self.budget_limit = float(budget_limit)
        return {"budget_limit": self.budget_limit}

    def get_nearest_airport_by_city(self, location: str) -> dict[str, Any]:
        """Find the airport nearest to a city.

        Args:
            location: The city's name.
        """
        return {"nearest_airport": NEAREST_AIRPORTS.get(location, "Unknown")}

    def purchase_insurance(
        self, access_token: str, insurance_type: str, booking_id: str, insurance_cost: float, card_id: str
    ) -> dict[str, Any]:
        """Insure a booking.

        Args:
            access_token: The token from logging in.
            insurance_type: Kind of insurance.
            booking_id: The booking's ID.
            insurance_cost: What it costs in US dollars.
            card_id: ID of the credit card that pays.
        """
        refusal = self._refusal(access_token)
        if not refusal and self.budget_limit is not None and self.budget_limit < insurance_cost:
            refusal = {"error": "Exceeded budget limit"}
        if not refusal and booking_id not in self.booking_record:
            refusal = {"error": "Booking not found"}
        if not refusal and card_id not in self.credit_card_list:
            refusal = {"error": "Credit card not registered"}
        if refusal:
            return {"insurance_status": False} | refusal
        self.credit_card_list[card_id]["balance"] -= insurance_cost
        insurance_id = str(self._random.randint(100_000_000, 999_999_999))
        return {"insurance_id": insurance_id, "insurance_status": True}

    def contact_customer_support(self, booking_id: str, message: str) -> dict[str, Any]:
        """Write to the customer support about a booking.

        Args:
            booking_id: The booking's ID.
            message: The message.
        """
        if booking_id not in self.booking_record:
            return {"error": "Booking not found"}
        thanks = "Thank you for contacting customer support."
        answer = "Your message has been received and we will get back to you shortly."
        return {"customer_support_message": f"{thanks} {answer}"}

    def get_all_credit_cards(self) -> dict[str, Any]:
        """Show all registered credit cards by their ID."""
        return {"credit_card_list": self.credit_card_list}


def _price_factor(travel_from: str, travel_to: str, travel_date: str, travel_class: str) -> int:
    """Return what a fare is multiplied with: a class's factor, and 2 where the digits of the date add up to even.

    Raises:
        ValueError: there is no such flight or class.
    """
    if (travel_from, travel_to) not in FARES:
        raise ValueError("No available route for the given airports.")
    # Compared one by one: a class of a type that no dictionary takes is an invalid class, too.
    factor = next((factor for name, factor in _CLASS_FACTORS.items() if travel_class == name), None)
    if factor is None:
        raise ValueError("Invalid travel class. Options are: economy, business, first.")
    digits = sum(int(character) for character in travel_date if character.isdigit())
    return factor * (2 if digits % 2 == 0 else 1)


def _refused_flight(travel_date: str, travel_from: str, travel_to: str, travel_class: str) -> dict[str, Any]:
    if travel_from not in list(AIRPORTS):
        return {"error": f"Invalid departure airport code: {travel_from}"}
    if travel_to not in list(AIRPORTS):
        return {"error": f"Invalid destination airport code: {travel_to}"}
    try:
        datetime.strptime(travel_date, "%Y-%m-%d")
    except ValueError:
        return {"error": "Invalid date format. Use YYYY-MM-DD."}
    if travel_class not in _CLASS_FACTORS:
        # Sorted: the official order is that of a set, another one in every process.
        return {"error": f"Invalid travel class. Must be one of {{{str(sorted(_CLASS_FACTORS))[1:-1]}}}"}
    return {}
