"""Support tickets of a company: a queue of them, and who is logged in."""

from __future__ import annotations

from typing import Any

from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import Surroundings

_EDITABLE = {"title", "description", "status", "priority"}


class TicketAPI:
    """This tool is a company's ticket system: it makes, shows, edits and closes support tickets."""

    def __init__(self, scenario: dict[str, Any], surroundings: Surroundings) -> None:
        self._budget = surroundings.budget
        self.ticket_queue = scenario.get("ticket_queue", [])
        self.ticket_counter = scenario.get("ticket_counter", 1)
        self.current_user = scenario.get("current_user")

    def create_ticket(self, title: str, description: str = "", priority: int = 1) -> dict[str, Any]:
        """Make a ticket.

        Args:
            title: Its title.
            description: What it is about.
            priority: From 1 to 5, which is the highest.
        """
        if not self.current_user:
            return {"error": "User not authenticated. Please log in to create a ticket."}
        if priority < 1 or priority > 5:
            return {"error": "Invalid priority. Priority must be between 1 and 5."}
        ticket = {
            "id": self.ticket_counter,
            "title": title,
            "description": description,
            "status": "Open",
            "priority": priority,
            "created_by": self.current_user,
        }
        self.ticket_queue.append(ticket)
        self.ticket_counter += 1
        return ticket

    def get_ticket(self, ticket_id: int) -> dict[str, Any]:
        """Show a ticket.

        Args:
            ticket_id: Its ID.
        """
        return self._find(ticket_id) or _not_found(ticket_id)

    def close_ticket(self, ticket_id: int) -> dict[str, Any]:
        """Close a ticket.

        Args:
            ticket_id: Its ID.
        """
        ticket = self._find(ticket_id)
        if not ticket:
            return _not_found(ticket_id)
        if ticket["status"] == "Closed":
            return {"error": f"Ticket with ID {ticket_id} is already closed."}
        ticket["status"] = "Closed"
        return {"status": f"Ticket {ticket_id} has been closed successfully."}

    def resolve_ticket(self, ticket_id: int, resolution: str) -> dict[str, Any]:
        """Mark a ticket as resolved.

        Args:
            ticket_id: Its ID.
            resolution: How it was resolved.
        """
        ticket = self._find(ticket_id)
        if not ticket:
            return _not_found(ticket_id)
        if ticket["status"] == "Resolved":
            return {"error": f"Ticket with ID {ticket_id} is already resolved."}
        ticket |= {"status": "Resolved", "resolution": resolution}
        return {"status": f"Ticket {ticket_id} has been resolved successfully."}

    def edit_ticket(self, ticket_id: int, updates: dict[str, Any]) -> dict[str, Any]:
        """Change a ticket.

        Args:
            ticket_id: Its ID.
            updates: The new values of title, description, status or priority; a value of None changes nothing.
        """
        ticket = self._find(ticket_id)
        if not ticket:
            return _not_found(ticket_id)
        invalid = set(updates.keys()) - _EDITABLE
        if invalid:
            # Sorted: the official order is that of a set, another one in every process.
            return {"error": f"Invalid fields for update: {', '.join(sorted(invalid))}"}
        ticket |= {key: value for key, value in updates.items() if value is not None}
        return {"status": f"Ticket {ticket_id} has been updated successfully."}

    def ticket_login(self, username: str, password: str) -> dict[str, Any]:
        """Log in to the ticket system.

        Args:
            username: The user's name.
            password: The user's password.
        """
        if not (username and password):
            return {"success": False}
        self.current_user = username
        return {"success": True}

    def ticket_get_login_status(self) -> dict[str, Any]:
        """Tell whether a user is logged in to the ticket system."""
        return {"login_status": bool(self.current_user)}

    def logout(self) -> dict[str, Any]:
        """Log out of the ticket system."""
        was_logged_in = bool(self.current_user)
        if was_logged_in:
            self.current_user = None
        return {"success": was_logged_in}

    def get_user_tickets(self, status: str | None = None) -> list[dict[str, Any]]:
        """Show the tickets that the user who is logged in has made.

        Args:
            status: Only those with this status, whatever its case.
        """
        if not self.current_user:
            return [{"error": "User not authenticated. Please log in to view tickets."}]
        self._budget.steps(len(self.ticket_queue))
        tickets = [ticket for ticket in self.ticket_queue if ticket["created_by"] == self.current_user]
        if status:
            tickets = [ticket for ticket in tickets if ticket["status"].lower() == status.lower()]
        return tickets

    def _find(self, ticket_id: int) -> dict[str, Any] | None:
        self._budget.steps(len(self.ticket_queue))
        return next((ticket for ticket in self.ticket_queue if ticket["id"] == ticket_id), None)


def _not_found(ticket_id: int) -> dict[str, Any]:
    return {"error": f"Ticket with ID {ticket_id} not found."}
