"""A stock trading account: orders, a balance, a watch list. It is always half past ten on 1 September 2024."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import Surroundings

_NOW = datetime(2024, 9, 1, 10, 30)
_SEED = 1053520
_SECONDS_PER_DAY = 86_400
_TIMESTAMP = "%Y-%m-%d %H:%M:%S"

_SYMBOLS = {
    "Apple": "AAPL",
    "Google": "GOOG",
    "Tesla": "TSLA",
    "Microsoft": "MSFT",
    "Nvidia": "NVDA",
    "Zeta Corp": "ZETA",
    "Alpha Tech": "ALPH",
    "Omega Industries": "OMEG",
    "Quasar Ltd.": "QUAS",
    "Neptune Systems": "NEPT",
    "Synex Solutions": "SYNX",
    "Amazon": "AMZN",
    "Gorilla": "GORI",
}
_SECTORS = {"Technology": ("AAPL", "GOOG", "MSFT", "NVDA"), "Automobile": ("TSLA", "F", "GM")}

# Of a scenario that names no stocks: price, change in percent, volume, and averages over 5 and 20 days.
_STOCKS = {
    "AAPL": (227.16, 0.17, 2.552, 227.11, 227.09),
    "GOOG": (2840.34, 0.24, 1.123, 2835.67, 2842.15),
    "TSLA": (667.92, -0.12, 1.654, 671.15, 668.20),
    "MSFT": (310.23, 0.09, 3.234, 309.88, 310.11),
    "NVDA": (220.34, 0.34, 1.234, 220.45, 220.67),
    "ALPH": (1320.45, -0.08, 1.567, 1321.12, 1325.78),
    "OMEG": (457.23, 0.12, 2.345, 456.78, 458.12),
    "QUAS": (725.89, -0.03, 1.789, 726.45, 728.00),
    "NEPT": (88.34, 0.19, 0.654, 88.21, 88.67),
    "SYNX": (345.67, 0.11, 2.112, 345.34, 346.12),
    "ZETA": (22.09, -0.05, 0.789, 22.12, 22.34),
}
_STOCK_FIELDS = ("price", "percent_change", "volume", "MA(5)", "MA(20)")


def _order(order_id: int, order_type: str, symbol: str, price: float, amount: int, status: str) -> dict[str, Any]:
    return {
        "id": order_id,
        "order_type": order_type,
        "symbol": symbol,
        "price": price,
        "amount": amount,
        "status": status,
    }


def _default_orders() -> dict[Any, Any]:
    orders = [
        _order(12345, "Buy", "AAPL", 210.65, 10, "Completed"),
        _order(12446, "Sell", "GOOG", 2840.56, 5, "Pending"),
    ]
    return {order["id"]: order for order in orders}


def _default_stocks() -> dict[str, Any]:
    return {symbol: dict(zip(_STOCK_FIELDS, values, strict=True)) for symbol, values in _STOCKS.items()}


def _not_authenticated(purpose: str) -> dict[str, Any]:
    return {"error": f"User not authenticated. Please log in to {purpose}."}


class TradingBot:
    """This tool trades stocks, manages the account, and shows what stocks are worth."""

    def __init__(self, scenario: dict[str, Any], surroundings: Surroundings) -> None:
        self._budget, self._extras = surroundings.budget, surroundings.long_context
        self._random = random.Random(scenario.get("random_seed", _SEED))
        orders = scenario.get("orders", _default_orders())
        self.orders = {int(k) if isinstance(k, str) and k.isdigit() else k: order for k, order in orders.items()}
        account = {"account_id": 12345, "balance": 10000.0, "binding_card": 1974202140965533}
        self.account_info = scenario.get("account_info", account)
        self.authenticated = scenario.get("authenticated", False)
        self.market_status = scenario.get("market_status", "Closed")
        self.order_counter = scenario.get("order_counter", 12446)
        self.stocks = scenario.get("stocks", _default_stocks())
        self.watch_list = scenario.get("watch_list", ["NVDA"])
        self.transaction_history = scenario.get("transaction_history", [])

    def get_current_time(self) -> dict[str, Any]:
        """Tell the time of day."""
        return {"current_time": _NOW.strftime("%I:%M %p")}

    def get_symbol_by_name(self, name: str) -> dict[str, Any]:
        """Look up the symbol of a company's stock.

        Args:
            name: The company's name.
        """
        return {"symbol": _SYMBOLS.get(name, "Stock not found")}

    def get_stock_info(self, symbol: str) -> dict[str, Any]:
        """Show a stock's price, its change in percent, its volume, and moving averages over 5 and 20 days.

        Args:
            symbol: The stock's symbol.
        """
        if symbol not in self.stocks:
            return {"error": f"Stock with symbol '{symbol}' not found."}
        stock: dict[str, Any] = self.stocks[symbol]
        if self._extras:
            stock = stock | {"MA(5)": self._extras.ma_5, "MA(20)": self._extras.ma_20}
        return stock

    def get_order_details(self, order_id: int) -> dict[str, Any]:
        """Show an order.

        Args:
            order_id: Its ID.
        """
        if order_id not in self.orders:
            known = str(list(self.orders))
            return {"error": f"Order with ID {order_id} not found.Here is the list of orders_id: {known}"}
        order: dict[str, Any] = self.orders[order_id]
        if self._extras:
            symbol = order["symbol"]
            details = {key: text.replace("{symbol}", f"{symbol}") for key, text in self._extras.order_details.items()}
            order = order | {"metadata": details}
        return order

    def cancel_order(self, order_id: int) -> dict[str, Any]:
        """Cancel an order that is not completed.

        Args:
            order_id: Its ID.
        """
        if order_id not in self.orders:
            return {"error": f"Order with ID {order_id} not found."}
        if self.orders[order_id]["status"] == "Completed":
            return {"error": f"Can't cancel order {order_id}. Order is already completed."}
        self.orders[order_id]["status"] = "Cancelled"
        return {"order_id": order_id, "status": "Cancelled"}

    def place_order(self, order_type: str, symbol: str, price: float, amount: int) -> dict[str, Any]:
        """Place an order.

        Args:
            order_type: Buy or Sell.
            symbol: The stock's symbol.
            price: Price of one share.
            amount: Number of shares.
        """
        if not self.authenticated:
            return _not_authenticated("place an order")
        if symbol not in self.stocks:
            return {"error": f"Invalid stock symbol: {symbol}"}
        if price <= 0 or amount <= 0:
            return {"error": "Price and amount must be positive values."}
        if order_type.lower() == "buy":
            cost, balance = float(price) * int(amount), self.account_info.get("balance", 0)
            if cost > balance:
                return {"error": f"Insufficient funds: required ${cost:.2f} but only ${balance:.2f} available."}
        price, order_id = float(price), self.order_counter
        self.orders[order_id] = _order(order_id, order_type, symbol, price, amount, "Open")
        self.order_counter += 1
        # Told as pending, kept as open: it takes a moment until an order placed is one that can be looked up.
        return {
            "order_id": order_id,
            "order_type": order_type,
            "status": "Pending",
            "price": price,
            "amount": amount,
        }

    def withdraw_funds(self, amount: float) -> dict[str, Any]:
        """Take money out of the account.

        Args:
            amount: How much.
        """
        if not self.authenticated:
            return _not_authenticated("make a transaction")
        if self.market_status != "Open":
            return {"error": "Market is closed. Transactions are not allowed."}
        if amount <= 0:
            return {"error": "Transaction amount must be positive."}
        if amount > self.account_info["balance"]:
            return {"error": "Insufficient funds for withdrawal."}
        self.account_info["balance"] -= amount
        self._record("withdrawal", amount)
        return {"status": "Withdrawal successful", "new_balance": self.account_info["balance"]}

    def fund_account(self, amount: float) -> dict[str, Any]:
        """Put money into the account.

        Args:
            amount: How much.
        """
        if not self.authenticated:
            return _not_authenticated("fund the account")
        if amount <= 0:
            return {"error": "Funding amount must be positive."}
        self.account_info["balance"] += amount
        self._record("deposit", amount)
        return {"status": "Account funded successfully", "new_balance": self.account_info["balance"]}

    def _record(self, kind: str, amount: float) -> None:
        moment = _NOW + timedelta(seconds=self._random.randint(0, _SECONDS_PER_DAY))
        self.transaction_history.append({"type": kind, "amount": amount, "timestamp": moment.strftime(_TIMESTAMP)})

    def get_account_info(self) -> dict[str, Any]:
        """Show the account's ID, balance and card."""
        account: dict[str, Any] = self.account_info
        return account if self.authenticated else _not_authenticated("view account information")

    def trading_login(self, username: str, password: str) -> dict[str, Any]:
        """Log in to the trading system.

        Args:
            username: The user's name.
            password: The user's password.
        """
        if self.authenticated:
            return {"status": "Already logged in"}
        self.authenticated = True
        return {"status": "Logged in successfully"}

    def trading_get_login_status(self) -> dict[str, Any]:
        """Tell whether the user is logged in to the trading system."""
        return {"status": bool(self.authenticated)}

    def trading_logout(self) -> dict[str, Any]:
        """Log out of the trading system."""
        if not self.authenticated:
            return {"status": "No user is currently logged in"}
        self.authenticated = False
        return {"status": "Logged out successfully"}

    def remove_stock_from_watchlist(self, symbol: str) -> dict[str, Any]:
        """Take a stock off the watch list.

        Args:
            symbol: The stock's symbol.
        """
        if not self.authenticated:
            return _not_authenticated("modify the watchlist")
        if symbol not in self.watch_list:
            return {"error": f"Stock {symbol} not found in watchlist."}
        self.watch_list.remove(symbol)
        return {"status": f"Stock {symbol} removed from watchlist successfully."}

    def get_watchlist(self) -> Any:
        """Show the watch list."""
        if not self.authenticated:
            return ["Error: User not authenticated. Please log in to view the watchlist."]
        if self._extras:
            return [*self.watch_list, *self._extras.watch_list]
        return {"watchlist": self.watch_list}

    def get_order_history(self) -> Any:
        """List the IDs of all orders."""
        if not self.authenticated:
            return [_not_authenticated("view order history")]
        return {"history": list(self.orders)}

    def get_transaction_history(self, start_date: str | None = None, end_date: str | None = None) -> Any:
        """Show deposits and withdrawals.

        Args:
            start_date: Not those before this day, YYYY-MM-DD.
            end_date: Not those after the beginning of this day, YYYY-MM-DD.
        """
        if not self.authenticated:
            return [_not_authenticated("view transaction history")]
        start = datetime.strptime(start_date, "%Y-%m-%d") if start_date else datetime.min
        end = datetime.strptime(end_date, "%Y-%m-%d") if end_date else datetime.max
        self._budget.steps(len(self.transaction_history))
        found = [
            transaction
            for transaction in self.transaction_history
            if start <= datetime.strptime(transaction["timestamp"], _TIMESTAMP) <= end
        ]
        return {"transaction_history": found + list(self._extras.transactions if self._extras else ())}

    def get_available_stocks(self, sector: str) -> dict[str, Any]:
        """List the stocks of a sector.

        Args:
            sector: Technology or Automobile.
        """
        more = {"Technology": self._extras.technology, "Automobile": self._extras.automobile} if self._extras else {}
        return {"stock_list": [*_SECTORS.get(sector, ()), *more.get(sector, ())]}

    def filter_stocks_by_price(self, stocks: list[str], min_price: float, max_price: float) -> dict[str, Any]:
        """Keep those stocks whose price lies between two prices.

        Args:
            stocks: Symbols of stocks.
            min_price: The lower price.
            max_price: The upper price.
        """
        found = []
        for symbol in stocks:
            price = self.stocks.get(symbol, {}).get("price", 0)
            if price >= min_price and price <= max_price:
                found.append(symbol)
        return {"filtered_stocks": found}

    def add_to_watchlist(self, stock: str) -> dict[str, Any]:
        """Put a stock on the watch list.

        Args:
            stock: The stock's symbol.
        """
        if stock not in self.watch_list and stock in self.stocks:
            self.watch_list.append(stock)
        return {"watchlist": self.watch_list}

    def notify_price_change(self, stocks: list[str], threshold: float) -> dict[str, Any]:
        """Tell which stocks have changed in price.

        Args:
            stocks: Symbols of stocks.
            threshold: Change in percent from which on it is told.
        """
        changed = [s for s in stocks if s in self.stocks and abs(self.stocks[s]["percent_change"]) >= threshold]
        if not changed:
            return {"notification": "No significant price changes in the selected stocks."}
        return {"notification": f"Stocks {', '.join(changed)} have significant price changes."}
