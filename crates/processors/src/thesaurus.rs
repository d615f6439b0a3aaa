//! Everyday English words that people use for one another, so that a question finds a text that says it in other words.
//!
//! A plain list of common words, British and American ones side by side. It stands in for what a trained model knows, and
//! is no more than that: rare words and other languages are found by their letters alone.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::text::words;

/// Words of one line may stand for one another; a word may be in several lines.
const GROUPS: &str = "
abandon quit stop cease end finish
accident crash collision
add append attach
advice recommendation suggestion tip hint guidance
afraid scared frightened fear
age old lifetime
airplane plane aircraft
alarm alert warning
allow permit let
ambulance emergency paramedic
answer reply response respond
apartment flat
attempt try retry
autumn fall
baby infant newborn
back backwards rear behind
bad poor wrong harmful
bag sack pouch
bake cook roast
bathroom toilet restroom
beach coast shore seaside
begin start commence
belly stomach abdomen tummy
best ideal optimal
bicycle bike cycle
big large huge great
bill invoice
bind tie fasten knot
biscuit cookie
black dark
blaze fire flame
bleed blood bleeding
boat ship vessel
bolt screw
boot trunk
bottle flask
bottom base lower underside
boy child kid girl
brake braking
break fracture crack shatter snap
breathe breath breathing
bright brilliant light
broken damaged defective faulty
brother sister sibling
bucket pail
bug insect pest
build make construct
burn scald
buy purchase
call phone telephone dial
cancel abort
candy sweets
car automobile vehicle
carry transport haul
cause reason why
chat talk speak
cheap inexpensive
check inspect examine verify test
chemist pharmacy drugstore
choose select pick
clean wash rinse scrub
clever smart intelligent
close shut
cloth fabric rag textile
clothes clothing garment
cold chill cool
colour color
compress compression press push
computer machine laptop pc
connect join link attach
container pot planter vessel
cook prepare
copy duplicate backup replica
correct right proper
cpr resuscitation compression
crash collapse fail
crazy mad insane
cut slit slash
danger hazard risk peril
dangerous risky unsafe hazardous
dark darkness night
dead die death
decide choose
decrease reduce lower lessen
deep depth
delay wait lag
delete erase remove
dense thick heavy
destroy ruin wreck
detect recognise recognize identify spot notice
device machine gadget
diabetic diabetes
different unequal differ
difficult hard
dirty soiled
disaster catastrophe
disc disk drive
discard dump throw
disease illness sickness
doctor physician
dough batter
drain drainage
drink beverage
drop fall
drug medicine medication
dry arid drought
dust powder
earth soil ground
eat food meal
edge border rim
effect result consequence
electric electrical electricity power
empty vacant
encrypt encryption cipher
error mistake fault failure
evening dusk sunset
exchange swap replace
experience notice feel
explode explosion burst
eye sight vision
factory plant
far distant distance
fast quick rapid speed swift
fasten secure attach fix
father dad parent mother mum
faucet tap
fault defect
feed nourish fertilise fertilizer
film movie
find locate discover
fix repair mend
fluid liquid
fog mist
forbid prohibit ban
forever always permanent
freeze frozen freezer frost
fridge refrigerator
frequency often interval
friend mate
fuel gas petrol
full complete
funny odd strange
furniture wardrobe sofa
garbage rubbish trash waste
garden yard
gasoline petrol
get receive obtain
glove mitten
glue adhesive cement
go move travel
grab grasp seize
grease oil lubricant lubricate
greenfly aphid
grow growth
guard protect
gun cannon
hand palm
happy glad pleased
hard firm solid
harm hurt damage injure
heal cure
healthy well
heart cardiac
heavy weight weigh
height high tall
hint clue sign
hire employ
history past
hit strike
hobby pastime
hole puncture leak
holiday vacation trip travel
home house household
hot warm heat
hurry rush
hurt injury wound injured
ice freeze
idea concept notion
identical same equal
ill sick
important essential vital
improve better
increase raise grow
inform tell notify
inside interior inner
invent inventor inventive build builder
jail prison
job task work
jump leap
keep store retain preserve
key password code
kill die death
king queen
kitchen cook
lamp light lantern
last final
latitude north
laugh smile
lawn grass
lazy idle
leak seep
learn study
leave depart
length long
letter mail post
library books
lid cover cap
lift elevator raise
load cargo
lock secure
lonely alone
lorry truck
lose loss lost
loud noise noisy howl squeal
magnify magnification enlarge
mass weight
maximum most limit
measure gauge
meat beef
medicine drug
mend patch
message notification
middle centre center
mild gentle
mirror reflector
mix stir blend
money cash cost price
moon lunar
mould mold fungus
mouth lips
move shift
murder kill
muscle strength
name call
narrow thin
nappy diaper
near close
nervous anxious
nose nasal
number count quantity amount
ocean sea
offer propose
oven stove
owner proprietor
pain ache sore hurt
paint varnish
pan pot
parcel package
path road way
pavement sidewalk
pen pencil
pepper chilli
picture photo photograph image
pipe tube hose
place location spot site
plaster bandage
pole post
police cop
polite kind
poor weak
port harbour harbor
pour spill
power energy
prevent avoid
print printer
problem trouble issue
produce make
producer publisher sender
profession occupation
promise guarantee
pull drag tug
pump inflate
puncture flat
push press shove
queue line
quiet silent silence
rain rainy wet
rare seldom
reach arrive
read reading
ready done finished
rebuild restore recover
recipe method
remember recall
repair mend
repeat again retry
rescue save
rest pause relax
restore recover recovery
ride cycle
ring circle
rinse wash
river stream
road street
rock stone
roof ceiling
rope line cord string
rot decay
rotate turn spin
rubber tyre tire
run operate
safe secure
salt salty
salve ointment
sand gravel
scale balance
school class
screw bolt
season spring summer
seat saddle
see watch observe look
seed sow
seizure fit epileptic
sell sale
send transmit
serious severe
shake tremble shiver
shape form
share divide
sharp keen
sheet page
shelf cupboard drawer
shine glow
shop store
short brief
shoulder collarbone
show display
shrink contract
shut close
sick ill vomit
sieve strainer filter
signal beacon
silly stupid
simple easy
sink basin
size dimension
skin peel
sky heaven
sleep bed rest
slow sluggish
small little tiny
smart clever
smell odour scent aroma
smoke fume
smooth even
snow ice
soap detergent
soft gentle
sort kind type
sour acid acidic tart
space room storage
spanner wrench
spare extra
speed velocity rate pace
spill leak
split tear
sponge rag
spot stain
spread distribute
squeeze pinch
stable steady
stale old
star stellar
steal thief theft
steep brew
stick adhere
stiff rigid
stir agitate
storm gale
story tale
strange odd unusual
stream flow
strong strength powerful
suffocate choke choking
sugar sweet
suit fit
sun solar sunlight
sure certain
surface top
sweat perspire
swell swollen swelling
switch toggle
tall high
taste flavour flavor
taxi cab
tea brew
teach teacher
tear rip
temperature degree hot heat thermometer
test trial
thick thickness diameter
thin narrow
throat neck
throw toss discard
tidy neat
tie bind
tight tighten taut torque
tilt lean bend
time duration hour minute
tin can
tiny small
tired exhausted
tool implement
top upper
torch flashlight
touch contact
tower lighthouse
traffic vehicle
train railway
transparent clear
trash bin
tree trunk branch
trick hoax
trousers pants
true correct
trust rely
try attempt
turn rotate
twist wind
tyre tire
ugly hideous
umbrella parasol
uncommon rare
unconscious faint fainted
undo untie loosen
unequal different
untie undo loosen release
usb stick flash
useful handy
vacuum hoover
value worth
vegetable salad
vibrate shake
victim casualty patient injured
video film
view sight
village town city
virus malware malicious
visible seen
visit tour
voice speech
voltage current
walk stroll
wall fence
war battle
warm heat
warn alert
waste rubbish
watch observe
water watering irrigate
weak feeble
wear worn
weather climate
weigh weight heavy
weird strange
wet damp moist soaked
wheel rim
wide broad width
wild untamed
win victory
wind breeze
window pane
winter cold
wire cable
wise clever
woman lady man
wood timber
word term
work function
worker labourer
worm slug
worry concern
wound cut injury
wrap cover
write note
wrong incorrect
yearly annual annually
young youth
";

static RELATED: LazyLock<HashMap<String, Vec<String>>> = LazyLock::new(|| {
    let mut related: HashMap<String, Vec<String>> = HashMap::new();
    for group in GROUPS.lines() {
        let stems: Vec<String> = words(group).into_iter().map(|word| word.stem).collect();
        for stem in &stems {
            let known = related.entry(stem.clone()).or_default();
            let others = stems.iter().filter(|other| *other != stem);
            for other in others {
                if !known.contains(other) {
                    known.push(other.clone());
                }
            }
        }
    }
    related
});

/// Stems that may stand for a stem, itself left out.
pub(crate) fn related(stem: &str) -> &'static [String] {
    RELATED.get(stem).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_line_stand_for_one_another() {
        assert!(related("holidai").contains(&"vacation".to_owned()));
        assert!(related("wrench").contains(&"spanner".to_owned()));
        assert!(related("lighthous").contains(&"tower".to_owned()));
        assert!(related("zebra").is_empty());
    }
}
