"""The fixed text of `trimtab bench accuracy`: written for this project, under its licence."""

from typing import Final

TEXT: Final = """\
The harbour town wakes before the sun does. First come the bakers, whose ovens have been burning since \
three, and then the fishermen, who walk down the hill in heavy boots and speak in low voices so that the \
children may sleep. By six the boats have left. The water is grey and almost still, and the only sound is \
the slow knocking of the moored hulls against the wooden piers.

Maria has kept the lighthouse for eleven years. Her father kept it before her, and taught her that the \
work is mostly patience: clean the glass, write down the weather, listen to the radio, and never trust a \
calm that arrives too quickly. In the first winter she was afraid of the storms. Now she counts the seconds \
between the lightning and the thunder, divides by three, and knows how many kilometres away the rain is.

A visitor once asked her whether a machine could not do all of this. Of course, she said. There has been a \
computer in the cellar since the year before last. It turns the lamp on at dusk and off at dawn, measures \
the wind, and sends the numbers to the capital every ten minutes. But when a small boat lost its engine in \
the fog, it was not the computer that heard somebody ringing a bell. It was a person who had opened the \
window because the evening was warm.

Machines are good at what can be counted. A pump that moves two hundred litres a minute will move twelve \
thousand in an hour, and it will do so today, tomorrow and on Sunday. What is harder to count is the moment \
when a number stops being useful. The tide tables say that the channel is deep enough at noon; the old pilot \
looks at the colour of the water, shakes his head, and waits until one.

In the afternoon the market closes and the square belongs to the children again. They play a game with \
chalk and a flat stone whose rules change every summer, although every child will tell you that they have \
always been the same. Somebody plays the accordion badly. The dogs sleep under the tables of the cafe, and \
the waiter steps over them without looking down, as he has done for twenty years.

At night the beam of the lamp passes over the roofs once every nine seconds. Nobody who lives here notices \
it any more, just as nobody hears a clock that has always been in the room. But on the one evening when the \
bulb failed, the whole town sat up in bed, and did not know why.
"""
