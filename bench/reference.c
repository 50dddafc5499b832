/* The limit: what a programmer would write by hand for these two works. REAL is double or float.

   Straight line y = w x + b by gradient descent on the mean squared residual. A row of the history is an epoch:
   loss and gradient before its step, parameters after it. */

#include <tgmath.h>

typedef REAL real;

static real descend(const real *x, const real *y, long n, const real *theta, real *gradient)
{
    real loss = 0, slope = 0, offset = 0;
    for (long i = 0; i < n; i++) {
        real residual = theta[0] * x[i] + theta[1] - y[i];
        loss += residual * residual;
        slope += residual * x[i];
        offset += residual;
    }
    gradient[0] = 2 * slope / n;
    gradient[1] = 2 * offset / n;
    return loss / n;
}

static void record(real *row, real loss, const real *theta, const real *gradient)
{
    row[0] = loss;
    row[1] = theta[0];
    row[2] = theta[1];
    row[3] = gradient[0];
    row[4] = gradient[1];
}

void sgd(const real *x, const real *y, long n, real *theta, double rate, long epochs, real *history)
{
    real gradient[2], lr = rate;
    for (long epoch = 0; epoch < epochs; epoch++) {
        real loss = descend(x, y, n, theta, gradient);
        for (int k = 0; k < 2; k++)
            theta[k] -= lr * gradient[k];
        record(history + 5 * epoch, loss, theta, gradient);
    }
}

void adam(const real *x, const real *y, long n, real *theta, double rate, long epochs, real *history)
{
    const double beta1 = 0.9, beta2 = 0.999;
    const real b1 = beta1, b2 = beta2, eps = 1e-8;
    double power1 = 1, power2 = 1;
    real gradient[2], mean[2] = {0, 0}, square[2] = {0, 0};
    for (long epoch = 0; epoch < epochs; epoch++) {
        real loss = descend(x, y, n, theta, gradient);
        power1 *= beta1;
        power2 *= beta2;
        real step = rate / (1 - power1), root = sqrt(1 - power2);
        for (int k = 0; k < 2; k++) {
            mean[k] += (1 - b1) * (gradient[k] - mean[k]);
            square[k] = b2 * square[k] + (1 - b2) * gradient[k] * gradient[k];
            theta[k] -= step * mean[k] / (sqrt(square[k]) / root + eps);
        }
        record(history + 5 * epoch, loss, theta, gradient);
    }
}

/* Mean squared residual of y = a exp(-b x) + c, returned, and its gradient. */
double decay(const real *x, const real *y, long n, const real *theta, real *gradient)
{
    const real a = theta[0], b = theta[1], c = theta[2];
    real loss = 0, by_a = 0, by_b = 0, by_c = 0;
    for (long i = 0; i < n; i++) {
        real e = exp(-b * x[i]);
        real residual = a * e + c - y[i];
        loss += residual * residual;
        by_a += residual * e;
        by_b += residual * e * x[i];
        by_c += residual;
    }
    gradient[0] = 2 * by_a / n;
    gradient[1] = -2 * a * by_b / n;
    gradient[2] = 2 * by_c / n;
    return loss / n;
}
