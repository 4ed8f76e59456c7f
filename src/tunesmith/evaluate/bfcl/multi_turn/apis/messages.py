"""Messages among the users of a workspace. There is one inbox; every entry is `{receiver: text}`."""

from __future__ import annotations

import random
from typing import Any

from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import Surroundings

_SEED = 200191
_NOT_LOGGED_IN = {"error": "No user is currently logged in."}


class MessageAPI:
    """This tool sends, deletes and finds messages among the users of a workspace."""

    def __init__(self, scenario: dict[str, Any], surroundings: Surroundings) -> None:
        self._random = random.Random(scenario.get("random_seed", _SEED))
        self._budget = surroundings.budget
        self.generated_ids = scenario.get("generated_ids", set())
        self.user_count = scenario.get("user_count", 4)
        users = {"Alice": "USR001", "Bob": "USR002", "Catherine": "USR003", "Daniel": "USR004"}
        self.user_map = scenario.get("user_map", users)
        inbox = [
            {"USR002": "My name is Alice. I want to connect."},
            {"USR003": "Could you upload the file?"},
            {"USR004": "Could you upload the file?"},
        ]
        self.inbox = scenario.get("inbox", inbox)
        self.message_count = scenario.get("message_count", 3)
        self.current_user = scenario.get("current_user")

    def list_users(self) -> dict[str, Any]:
        """List the users of the workspace by name."""
        return {"user_list": list(self.user_map)}

    def get_user_id(self, user: str) -> dict[str, Any]:
        """Look up a user's ID.

        Args:
            user: The user's name.
        """
        if user not in self.user_map:
            return {"error": f"User '{user}' not found in the workspace."}
        return {"user_id": self.user_map.get(user)}

    def message_login(self, user_id: str) -> dict[str, Any]:
        """Log a user in to the message system.

        Args:
            user_id: The user's ID.
        """
        if user_id not in list(self.user_map.values()):
            return {"login_status": False, "message": f"User ID '{user_id}' not found."}
        self.current_user = user_id
        return {"login_status": True, "message": f"User '{user_id}' logged in successfully."}

    def message_get_login_status(self) -> dict[str, Any]:
        """Tell whether a user is logged in to the message system."""
        return {"login_status": bool(self.current_user)}

    def send_message(self, receiver_id: str, message: str) -> dict[str, Any]:
        """Send a message.

        Args:
            receiver_id: ID of the user who gets it.
            message: Its text.
        """
        if not self.current_user:
            return _NOT_LOGGED_IN
        if receiver_id not in self.user_map.values():
            return {"error": f"Receiver ID '{receiver_id}' not found."}
        new_id = self._new_id()
        self.inbox.append({receiver_id: message})
        self.message_count += 1
        return {
            "sent_status": True,
            "message_id": {"new_id": new_id},
            "message": f"Message sent to '{receiver_id}' successfully.",
        }

    def _new_id(self) -> int:
        new_id = self._random.randint(10000, 99999)
        while new_id in self.generated_ids:
            self._budget.steps()
            new_id = self._random.randint(10000, 99999)
        self.generated_ids.add(new_id)
        return new_id

    def delete_message(self, receiver_id: str) -> dict[str, Any]:
        """Delete the latest message to a user.

        Args:
            receiver_id: The user's ID.
        """
        if not self.current_user:
            return _NOT_LOGGED_IN
        for message in reversed(self.inbox):
            receiver = next(iter(message))
            if receiver == receiver_id:
                self.inbox.remove(message)  # the first of its equals, which is where it matters
                return {
                    "deleted_status": True,
                    "receiver_id": receiver,
                    "message": f"Receiver {receiver_id}'s latest message deleted successfully.",
                }
        return {"error": f"Receiver ID {receiver_id} not found."}

    def view_messages_sent(self) -> dict[str, Any]:
        """Show all messages, by the ID of the user who got them."""
        if not self.current_user:
            return _NOT_LOGGED_IN
        sent: dict[str, list[str]] = {}
        for receiver, text in self._messages():
            sent.setdefault(receiver, []).append(text)
        return {"messages": sent}

    def add_contact(self, user_name: str) -> dict[str, Any]:
        """Add a user to the workspace.

        Args:
            user_name: The user's name.
        """
        if user_name in self.user_map:
            return {"error": f"User name '{user_name}' already exists."}
        self.user_count += 1
        user_id = f"USR{str(self.user_count).zfill(3)}"
        if user_id in self.user_map.values():
            return {"error": f"User ID '{user_id}' already exists."}
        self.user_map[user_name] = user_id
        return {"added_status": True, "user_id": user_id, "message": f"Contact '{user_name}' added successfully."}

    def search_messages(self, keyword: str) -> dict[str, Any]:
        """Find messages that contain a word, whatever its case.

        Args:
            keyword: The word.
        """
        if not self.current_user:
            return _NOT_LOGGED_IN
        wanted = keyword.lower()
        found = [(receiver, text) for receiver, text in self._messages() if wanted in text.lower()]
        return {"results": [{"receiver_id": receiver, "message": text} for receiver, text in found]}

    def get_message_stats(self) -> dict[str, Any]:
        """Count the messages and the users who got some."""
        if not self.current_user:
            return _NOT_LOGGED_IN
        receivers = [receiver for receiver, _ in self._messages()]
        return {"stats": {"received_count": len(receivers), "total_contacts": len(set(receivers))}}

    def _messages(self) -> list[tuple[Any, Any]]:
        self._budget.steps(len(self.inbox))
        return [next(iter(message.items())) for message in self.inbox]
