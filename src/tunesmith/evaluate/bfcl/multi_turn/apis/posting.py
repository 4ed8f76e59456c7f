"""Tweets, comments, retweets, and whom the user follows."""

from __future__ import annotations

from typing import Any

from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import Surroundings

_NOT_GIVEN: list[str] = []  # known by identity: an empty list that is given is another one


def _not_authenticated(action: str) -> dict[str, Any]:
    return {"error": f"User not authenticated. Please authenticate before {action}."}


class TwitterAPI:
    """This tool posts on Twitter: tweets, retweets, comments; and it follows users."""

    def __init__(self, scenario: dict[str, Any], surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self.username = scenario.get("username", "john")
        self.password = scenario.get("password", "john123")
        self.authenticated = scenario.get("authenticated", False)
        # Keys of tweets become numbers and those of comments stay text: comments of the scenario are never found.
        self.tweets = {int(key): tweet for key, tweet in scenario.get("tweets", {}).items()}
        self.comments = scenario.get("comments", {})
        self.retweets = scenario.get("retweets", {})
        self.following_list = scenario.get("following_list", ["alice", "bob"])
        self.tweet_counter = scenario.get("tweet_counter", 0)

    def authenticate_twitter(self, username: str, password: str) -> dict[str, Any]:
        """Log in to Twitter.

        Args:
            username: The user's name.
            password: The user's password.
        """
        if username != self.username or password != self.password:
            return {"authentication_status": False}
        self.authenticated = True
        return {"authentication_status": True}

    def posting_get_login_status(self) -> dict[str, Any]:
        """Tell whether the user is logged in to Twitter."""
        return {"login_status": bool(self.authenticated)}

    def post_tweet(
        self, content: str, tags: list[str] = _NOT_GIVEN, mentions: list[str] = _NOT_GIVEN
    ) -> dict[str, Any]:
        """Post a tweet.

        Args:
            content: Its text.
            tags: Its tags, each beginning with #.
            mentions: Users it mentions, each beginning with @.
        """
        if not self.authenticated:
            return _not_authenticated("posting")
        tweet = {
            "id": self.tweet_counter,
            "username": self.username,
            "content": content,
            "tags": self._surroundings.default_tags if tags is _NOT_GIVEN else tags,
            "mentions": self._surroundings.default_mentions if mentions is _NOT_GIVEN else mentions,
        }
        self.tweets[self.tweet_counter] = tweet
        self.tweet_counter += 1
        return tweet

    def retweet(self, tweet_id: int) -> dict[str, Any]:
        """Retweet a tweet.

        Args:
            tweet_id: Its ID.
        """
        if not self.authenticated:
            return _not_authenticated("retweeting")
        if tweet_id not in self.tweets:
            return {"error": f"Tweet with ID {tweet_id} not found."}
        retweeted = self.retweets.setdefault(self.username, [])
        if tweet_id in retweeted:
            return {"retweet_status": "Already retweeted"}
        retweeted.append(tweet_id)
        return {"retweet_status": "Successfully retweeted"}

    def comment(self, tweet_id: int, comment_content: str) -> dict[str, Any]:
        """Comment on a tweet.

        Args:
            tweet_id: Its ID.
            comment_content: The comment's text.
        """
        if not self.authenticated:
            return _not_authenticated("commenting")
        if tweet_id not in self.tweets:
            return {"error": f"Tweet with ID {tweet_id} not found."}
        self.comments.setdefault(tweet_id, []).append({"username": self.username, "content": comment_content})
        return {"comment_status": "Comment added successfully"}

    def mention(self, tweet_id: int, mentioned_usernames: list[str]) -> dict[str, Any]:
        """Mention users in a tweet that is already posted.

        Args:
            tweet_id: Its ID.
            mentioned_usernames: The users' names.
        """
        if tweet_id not in self.tweets:
            return {"error": f"Tweet with ID {tweet_id} not found."}
        self.tweets[tweet_id]["mentions"].extend(mentioned_usernames)
        return {"mention_status": "Users mentioned successfully"}

    def follow_user(self, username_to_follow: str) -> dict[str, Any]:
        """Follow a user.

        Args:
            username_to_follow: The user's name.
        """
        if not self.authenticated:
            return _not_authenticated("following")
        if username_to_follow in self.following_list:
            return {"follow_status": False}
        self.following_list.append(username_to_follow)
        return {"follow_status": True}

    def list_all_following(self) -> dict[str, Any]:
        """List the users that are followed."""
        if not self.authenticated:
            return _not_authenticated("listing following")
        return {"following_list": self.following_list}

    def unfollow_user(self, username_to_unfollow: str) -> dict[str, Any]:
        """Follow a user no longer.

        Args:
            username_to_unfollow: The user's name.
        """
        if not self.authenticated:
            return _not_authenticated("unfollowing")
        if username_to_unfollow not in self.following_list:
            return {"unfollow_status": False}
        self.following_list.remove(username_to_unfollow)
        return {"unfollow_status": True}

    def get_tweet(self, tweet_id: int) -> dict[str, Any]:
        """Show a tweet.

        Args:
            tweet_id: Its ID.
        """
        if tweet_id not in self.tweets:
            return {"error": f"Tweet with ID {tweet_id} not found."}
        tweet: dict[str, Any] = self.tweets[tweet_id]
        return tweet

    def get_user_tweets(self, username: str) -> list[dict[str, Any]]:
        """Show all tweets of a user.

        Args:
            username: The user's name.
        """
        return [tweet for tweet in self._all() if tweet["username"] == username]

    def search_tweets(self, keyword: str) -> list[dict[str, Any]]:
        """Find tweets with a word in their text, or with a tag, whatever its case.

        Args:
            keyword: The word or tag.
        """
        return [
            tweet
            for tweet in self._all()
            if keyword.lower() in tweet["content"].lower() or keyword.lower() in [tag.lower() for tag in tweet["tags"]]
        ]

    def get_tweet_comments(self, tweet_id: int) -> Any:
        """Show the comments on a tweet.

        Args:
            tweet_id: The tweet's ID.
        """
        if tweet_id not in self.tweets:
            return {"error": f"Tweet with ID {tweet_id} not found."}
        return self.comments.get(tweet_id, [])

    def get_user_stats(self, username: str) -> dict[str, Any]:
        """Count a user's tweets, retweets, and the users that user follows.

        Args:
            username: The user's name.
        """
        return {
            "tweet_count": len([tweet for tweet in self._all() if tweet["username"] == username]),
            "following_count": len(self.following_list) if username == self.username else 0,
            "retweet_count": len(self.retweets.get(username, [])),
        }

    def _all(self) -> list[dict[str, Any]]:
        self._surroundings.budget.steps(len(self.tweets))
        return list(self.tweets.values())
