"""A car: engine, doors, climate, lights, brakes, cruise control, navigation, tyres."""

from __future__ import annotations

import random
from typing import Any

from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import Surroundings

_SEED = 141053
_TANK_GALLONS = 50
_MILES_PER_GALLON = 20.0
_FULL_BRAKE_NEWTONS = 1000
_HEALTHY_PSI = (30, 35)

_ZIP_CODES = {
    "Rivermist": "83214",
    "Stonebrook": "74532",
    "Maplecrest": "56108",
    "Silverpine": "62947",
    "Shadowridge": "71354",
    "Sunset Valley": "83462",
    "Oakendale": "47329",
    "Willowbend": "52013",
    "Crescent Hollow": "69238",
    "Autumnville": "51479",
    "San Francisco": "94016",
}
_DISTANCES_KM = {
    ("83214", "74532"): 750.0,
    ("56108", "62947"): 320.0,
    ("71354", "83462"): 450.0,
    ("47329", "52013"): 290.0,
    ("69238", "51479"): 630.0,
    ("94016", "83214"): 980.0,
    ("94016", "94704"): 600.0,
    ("94704", "08540"): 2550.0,
    ("94016", "08540"): 1950.0,
    ("62947", "47329"): 1053.0,
    ("94016", "62947"): 780.0,
    ("74532", "94016"): 880.0,
}


class VehicleControlAPI:
    """This tool controls a car: engine, doors, climate, lights, brakes, cruise control and navigation."""

    def __init__(self, scenario: dict[str, Any], surroundings: Surroundings) -> None:
        self._extras, self._random = surroundings.long_context, random.Random(scenario.get("random_seed", _SEED))
        self.fuelLevel = scenario.get("fuelLevel", 0.0)
        self.batteryVoltage = scenario.get("batteryVoltage", 12.6)
        self.engine_state = scenario.get("engineState", "stopped")
        doors = ("driver", "passenger", "rear_left", "rear_right")
        self.doorStatus = scenario.get("doorStatus", dict.fromkeys(doors, "unlocked"))
        self.remainingUnlockedDoors = len(doors) - list(self.doorStatus.values()).count("locked")
        self.acTemperature = scenario.get("acTemperature", 25.0)
        self.fanSpeed = scenario.get("fanSpeed", 50)
        self.acMode = scenario.get("acMode", "auto")
        self.humidityLevel = scenario.get("humidityLevel", 50.0)
        self.headLightStatus = scenario.get("headLightStatus", "off")
        self.parkingBrakeStatus = scenario.get("parkingBrakeStatus", "released")
        self._parking_brake_force = scenario.get("parkingBrakeForce", 0.0)
        self._slope_angle = scenario.get("slopeAngle", 0.0)
        self.brakePedalStatus = scenario.get("brakePedalStatus", "released")
        self._brake_pedal_force = scenario.get("brakePedalForce", 0.0)
        self.distanceToNextVehicle = scenario.get("distanceToNextVehicle", 50.0)
        self.cruiseStatus = scenario.get("cruiseStatus", "inactive")
        self.destination = scenario.get("destination", "None")
        self.frontLeftTirePressure = scenario.get("frontLeftTirePressure", 32.0)
        self.frontRightTirePressure = scenario.get("frontRightTirePressure", 32.0)
        self.rearLeftTirePressure = scenario.get("rearLeftTirePressure", 30.0)
        self.rearRightTirePressure = scenario.get("rearRightTirePressure", 30.0)

    def startEngine(self, ignitionMode: str) -> dict[str, Any]:
        """Start or stop the engine; the doors must be locked and the brake pedal pressed down fully.

        Args:
            ignitionMode: START or STOP.
        """
        if ignitionMode == "STOP":
            self.engine_state = "stopped"  # and then told off all the same
        if self.remainingUnlockedDoors > 0:
            unlocked = ", ".join(door for door, status in self.doorStatus.items() if status == "unlocked")
            message = "All doors must be locked before starting the engine. Here are the unlocked doors: "
            return {"error": message + unlocked}
        if self.brakePedalStatus != "pressed":
            return {"error": "Brake pedal needs to be pressed when starting the engine."}
        if self._brake_pedal_force != _FULL_BRAKE_NEWTONS:
            return {"error": "Must press the brake fully before starting the engine."}
        if self.fuelLevel < 0:
            return {"error": "Fuel tank is empty."}
        if ignitionMode != "START":
            return {"error": "Invalid ignition mode."}
        self.engine_state = "running"
        return {"engineState": "running", "fuelLevel": self.fuelLevel, "batteryVoltage": self.batteryVoltage}

    def fillFuelTank(self, fuelAmount: float) -> dict[str, Any]:
        """Fill the fuel tank, which holds 50 gallons.

        Args:
            fuelAmount: Gallons to add.
        """
        if fuelAmount < 0:
            return {"error": "Fuel amount cannot be negative."}
        if self.fuelLevel + fuelAmount > _TANK_GALLONS:
            return {"error": "Cannot fill gas above the tank capacity."}
        if self.fuelLevel + fuelAmount < 0:
            return {"error": "Fuel tank is empty. Min fuel level is 0 gallons."}
        self.fuelLevel += fuelAmount
        return {"fuelLevel": self.fuelLevel}

    def lockDoors(self, unlock: bool, door: list[str]) -> dict[str, Any]:
        """Lock or unlock doors.

        Args:
            unlock: Whether to unlock them.
            door: Which of driver, passenger, rear_left and rear_right.
        """
        wanted, change = ("unlocked", 1) if unlock else ("locked", -1)
        for name in door:
            if self.doorStatus[name] != wanted:
                self.doorStatus[name] = wanted
                self.remainingUnlockedDoors += change
        return {"lockStatus": wanted, "remainingUnlockedDoors": self.remainingUnlockedDoors}

    def adjustClimateControl(
        self, temperature: float, unit: str = "celsius", fanSpeed: int = 50, mode: str = "auto"
    ) -> dict[str, Any]:
        """Set the air conditioning.

        Args:
            temperature: The temperature.
            unit: Its unit, celsius or fahrenheit.
            fanSpeed: From 0 to 100.
            mode: auto, cool, heat or defrost.
        """
        if not (0 <= fanSpeed <= 100):
            return {"error": "Fan speed must be between 0 and 100."}
        self.acTemperature = temperature
        if unit == "fahrenheit":
            self.acTemperature = (temperature - 32) * 5 / 9
        self.fanSpeed, self.acMode = fanSpeed, mode
        return {"currentACTemperature": temperature, "climateMode": mode, "humidityLevel": self.humidityLevel}

    def get_outside_temperature_from_google(self) -> dict[str, Any]:
        """Tell the temperature outside in degrees Celsius, from Google."""
        measured = {"outsideTemperature": self._random.uniform(-10.0, 40.0)}
        return self._extras.weather | measured if self._extras else measured

    def get_outside_temperature_from_weather_com(self) -> dict[str, Any]:
        """Tell the temperature outside in degrees Celsius, from weather.com."""
        return {"error": 404}

    def setHeadlights(self, mode: str) -> dict[str, Any]:
        """Switch the headlights.

        Args:
            mode: on, off or auto.
        """
        if mode not in ["on", "off", "auto"]:
            return {"error": "Invalid headlight mode."}
        self.headLightStatus = "on" if mode == "on" else "off"
        return {"headlightStatus": self.headLightStatus}

    def displayCarStatus(self, option: str) -> dict[str, Any]:
        """Show the state of a part of the car.

        Args:
            option: fuel, battery, doors, climate, headlights, parkingBrake, brakePedal or engine.
        """
        known: dict[str, dict[str, Any]] = {
            "fuel": {"fuelLevel": self.fuelLevel},
            "battery": {"batteryVoltage": self.batteryVoltage},
            "doors": {"doorStatus": self.doorStatus},
            "climate": {
                "currentACTemperature": self.acTemperature,
                "fanSpeed": self.fanSpeed,
                "climateMode": self.acMode,
                "humidityLevel": self.humidityLevel,
            },
            "headlights": {"headlightStatus": self.headLightStatus},
            "parkingBrake": {
                "parkingBrakeStatus": self.parkingBrakeStatus,
                "parkingBrakeForce": self._parking_brake_force,
                "slopeAngle": self._slope_angle,
            },
            "brakePedal": {"brakePedalStatus": self.brakePedalStatus, "brakePedalForce": self._brake_pedal_force},
            "engine": {"engineState": self.engine_state},
        }
        shown = known[option] if isinstance(option, str) and option in known else {"error": "Invalid option"}
        return ({"metadata": self._extras.car} if self._extras else {}) | shown

    def activateParkingBrake(self, mode: str) -> dict[str, Any]:
        """Engage or release the parking brake.

        Args:
            mode: engage or release.
        """
        if mode not in ["engage", "release"]:
            return {"error": "Invalid mode"}
        self.parkingBrakeStatus, self._parking_brake_force = (
            ("engaged", 500.0) if mode == "engage" else ("released", 0.0)
        )
        self._slope_angle = 10.0
        instruction = {"parkingBrakeInstruction": self._extras.parking_brake} if self._extras else {}
        return instruction | {
            "parkingBrakeStatus": self.parkingBrakeStatus,
            "_parkingBrakeForce": self._parking_brake_force,
            "_slopeAngle": self._slope_angle,
        }

    def pressBrakePedal(self, pedalPosition: float) -> dict[str, Any]:
        """Press the brake pedal; it stays pressed until it is released.

        Args:
            pedalPosition: From 0, not pressed, to 1, pressed down fully.
        """
        if not (0 <= pedalPosition <= 1):
            return {"error": "Pedal position must be between 0 and 1."}
        if pedalPosition == 0:
            return self.releaseBrakePedal()
        self.brakePedalStatus, self._brake_pedal_force = "pressed", pedalPosition * _FULL_BRAKE_NEWTONS
        return {"brakePedalStatus": "pressed", "brakePedalForce": float(self._brake_pedal_force)}

    def releaseBrakePedal(self) -> dict[str, Any]:
        """Release the brake pedal."""
        self.brakePedalStatus, self._brake_pedal_force = "released", 0.0
        return {"brakePedalStatus": "released", "brakePedalForce": 0.0}

    def setCruiseControl(self, speed: float, activate: bool, distanceToNextVehicle: float) -> dict[str, Any]:
        """Switch the cruise control.

        Args:
            speed: Miles per hour, from 0 to 120 in steps of 5.
            activate: Whether to switch it on.
            distanceToNextVehicle: Metres to keep.
        """
        distance = float(distanceToNextVehicle)
        speed = float(speed)
        if self.engine_state == "stopped":
            return {"error": "Start the engine before activating the cruise control."}
        self.distanceToNextVehicle = distance
        if activate and (speed < 0 or speed > 120 or speed % 5 != 0):
            return {"error": "Invalid speed"}
        self.cruiseStatus = "active" if activate else "inactive"
        return {"cruiseStatus": self.cruiseStatus, "currentSpeed": speed, "distanceToNextVehicle": distance}

    def get_current_speed(self) -> dict[str, Any]:
        """Tell the speed in kilometres per hour."""
        return {"currentSpeed": self._random.uniform(0.0, 120.0)}

    def display_log(self, messages: list[str]) -> dict[str, Any]:
        """Show messages.

        Args:
            messages: The messages.
        """
        return {"log": messages}

    def estimate_drive_feasibility_by_mileage(self, distance: float) -> dict[str, Any]:
        """Tell whether the fuel is enough for a distance.

        Args:
            distance: The distance in miles.
        """
        return {"canDrive": not self.fuelLevel * _MILES_PER_GALLON < distance}

    def liter_to_gallon(self, liter: float) -> dict[str, Any]:
        """Convert litres to gallons.

        Args:
            liter: The litres.
        """
        return {"gallon": liter * 0.264172}

    def gallon_to_liter(self, gallon: float) -> dict[str, Any]:
        """Convert gallons to litres.

        Args:
            gallon: The gallons.
        """
        return {"liter": gallon * 3.78541}

    def estimate_distance(self, cityA: str, cityB: str) -> dict[str, Any]:
        """Tell the distance between two cities in kilometres.

        Args:
            cityA: Zip code of the one city.
            cityB: Zip code of the other.
        """
        cities = (cityA, cityB)
        known = next((km for pair, km in _DISTANCES_KM.items() if cities in (pair, pair[::-1])), None)
        found: dict[str, Any] = {"error": "distance not found in database."} if known is None else {"distance": known}
        return found | ({"intermediaryCities": self._extras.cities} if self._extras else {})

    def get_zipcode_based_on_city(self, city: str) -> dict[str, Any]:
        """Look up the zip code of a city.

        Args:
            city: The city's name.
        """
        return {"zipcode": next((code for name, code in _ZIP_CODES.items() if name == city), "00000")}

    def set_navigation(self, destination: str) -> dict[str, Any]:
        """Set the destination.

        Args:
            destination: Street, city and state.
        """
        self.destination = destination
        return {"status": "Navigating to " + destination}

    def check_tire_pressure(self) -> dict[str, Any]:
        """Tell the pressure of each tyre in psi, and whether the mean is healthy."""
        pressures = {
            "frontLeftTirePressure": self.frontLeftTirePressure,
            "frontRightTirePressure": self.frontRightTirePressure,
            "rearLeftTirePressure": self.rearLeftTirePressure,
            "rearRightTirePressure": self.rearRightTirePressure,
        }
        lowest, highest = _HEALTHY_PSI
        return pressures | {
            "healthy_tire_pressure": lowest <= sum(pressures.values()) / 4 <= highest,
            "car_info": self._extras.car if self._extras else {},
        }

    def find_nearest_tire_shop(self) -> dict[str, Any]:
        """Tell the address of the nearest tyre shop."""
        return {"shopLocation": "456 Oakwood Avenue, Rivermist, 83214"}
