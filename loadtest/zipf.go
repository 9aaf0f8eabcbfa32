package loadtest

import (
	"math"
	"math/rand/v2"
)

// zipfTheta is the skew of YCSB: the most popular of a million records gets
// about 6.5 % of the requests.
const zipfTheta = 0.99

// zipf draws ranks from [0, n): rank k has weight 1/(k+1)^s. It works by
// rejection from the inverted integral of the weights (Hörmann and Derflinger,
// 1996), so making one takes no sum over n, and n can change between draws.
type zipf struct {
	n, s     float64
	top      float64 // integral up to n + 1/2
	bottom   float64 // integral up to 3/2, less the weight of the first rank
	shortcut float64 // draws that close to an integer are accepted at once
}

func newZipf(n uint64, s float64) zipf {
	z := zipf{n: float64(max(n, 1)), s: s}
	z.top = z.integral(z.n + 0.5)
	z.bottom = z.integral(1.5) - 1
	z.shortcut = 2 - z.inverse(z.integral(2.5)-z.weight(2))
	return z
}

// weight is x^-s, integral its antiderivative that is 0 at 1, inverse the
// inverse of that. They hold for s near 1 too, where the plain quotients
// would lose all digits.
func (z *zipf) weight(x float64) float64 { return math.Exp(-z.s * math.Log(x)) }

func (z *zipf) integral(x float64) float64 {
	if z.s == 1 {
		return math.Log(x)
	}
	return math.Expm1((1-z.s)*math.Log(x)) / (1 - z.s)
}

func (z *zipf) inverse(y float64) float64 {
	if z.s == 1 {
		return math.Exp(y)
	}
	return math.Exp(math.Log1p(y*(1-z.s)) / (1 - z.s))
}

func (z *zipf) rank(r *rand.Rand) uint64 {
	for {
		u := z.top + r.Float64()*(z.bottom-z.top)
		x := z.inverse(u)
		k := min(max(math.Floor(x+0.5), 1), z.n)
		if k-x <= z.shortcut || u >= z.integral(k+0.5)-z.weight(k) {
			return uint64(k) - 1
		}
	}
}

// mix is a bijection of 64-bit numbers that leaves no pattern: neighbours land
// far apart. (The finishing step of splitmix64.)
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
